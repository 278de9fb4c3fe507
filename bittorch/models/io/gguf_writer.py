"""GGUF files, written tensor by tensor."""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bittorch.models import architectures
from bittorch.models.architectures.base import Architecture
from bittorch.models.config import ModelConfig
from bittorch.models.io import choices, codecs
from bittorch.models.io.checkpoint import Checkpoint
from bittorch.models.io.directory_format import refuse_depth
from bittorch.models.io.errors import FormatError, LossyError
from bittorch.models.io.gguf import PLAIN
from bittorch.models.io.gguf_names import config_entries, gguf_name
from bittorch.models.io.gguf_rope import rope_factors
from bittorch.models.io.gguf_tokenizer import tokenizer_entries
from bittorch.models.io.gguf_types import TYPES
from bittorch.models.io.stacks import stacked_name
from bittorch.models.io.ternary_tensor import chunks, reordered_columns
from bittorch.models.packed_weight import PackedWeight

ALIGNMENT = 32
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"  # which llama.cpp takes as bytes alone
GGUF_TARGETS = {"gguf-tq1_0": "TQ1_0", "gguf-tq2_0": "TQ2_0", "gguf-q2_0": "Q2_0", "gguf-i2_s": "I2_S"}
TYPE_IDS = {kind.name: number for number, kind in TYPES.items()}
FILE_TYPES = {"TQ1_0": 36, "TQ2_0": 37, "I2_S": 40, "Q2_0": 41}
# What says how a file is laid out, not what the model is.
OWN_ENTRIES = ("general.architecture", "general.file_type", "general.alignment", "general.quantization_version")


class Entry:
    """One tensor to be: its row in the table, its bytes when they are wanted, and the canonical names that it holds."""

    def __init__(
        self,
        name: str,
        type_name: str,
        shape: tuple[int, ...],
        data: Callable[[], Iterator[Any]],
        holds: Sequence[str] = (),
    ) -> None:
        kind = TYPES[TYPE_IDS[type_name]]
        self.name, self.type_name, self.shape, self.data, self.holds = name, type_name, shape, data, holds
        self.bytes = math.prod(shape) // kind.weights * kind.bytes + kind.tail


def write_gguf(
    source: Checkpoint,
    path: Path,
    type_name: str,
    allow_lossy: bool,
    dense_dtype: torch.dtype | None,
    seen: Callable[[str], None],
) -> None:
    """Writes a whole file.

    Args:
        source: what to write.
        path: the file, not there yet.
        type_name: of ternary tensors: ``TQ1_0``, ``TQ2_0``, ``Q2_0`` or ``I2_S``.
        allow_lossy: whether a scale may be rounded to float16.
        dense_dtype: of the matrices that are not ternary; None keeps theirs. Vectors are float32, as ggml wants them.
        seen: called with each name when it has been written.

    Raises:
        LossyError: what the type cannot hold: rows that are no multiple of its blocks, scales of another granularity
            or precision, planes.
        OSError: the file cannot be written.
    """
    arch = _name(architectures.find(source.config.architecture), source.config, type_name)
    _warn_of_readers(source.config, type_name, path)
    table = _table(source, type_name, allow_lossy, dense_dtype)
    for name, factors in rope_factors(source.config).items():
        values = np.array(factors, "<f4")
        table.append(Entry(name, "F32", values.shape, lambda values=values: iter([values])))  # type: ignore[misc]
    entries = {"general.architecture": arch, "general.file_type": FILE_TYPES[type_name]}
    # The tokenizer's numbers of special tokens count; the configuration's have entries of bittorch's own.
    entries |= {**config_entries(source.config, arch), **_carried(source)}
    with open(path, "xb") as file:
        _write_header(file, entries, table)
        for entry in table:
            file.write(bytes(-file.tell() % ALIGNMENT))
            begin = file.tell()
            for part in entry.data():
                file.write(np.ascontiguousarray(part).data)
            assert file.tell() - begin == entry.bytes, entry.name
            for name in entry.holds:
                seen(name)
        file.flush()
        os.fsync(file.fileno())


def _warn_of_readers(config: ModelConfig, type_name: str, path: Path) -> None:
    """Names what other programs would read in another way than is meant."""
    if type_name == "I2_S" and config.activation_bits != 8:
        choices.warn(
            "write-i2_s-activations",
            f"bitnet.cpp, the only program with I2_S, runs it with 8-bit activations; the model has activation_bits="
            f"{config.activation_bits}, which bittorch alone reads from the file",
        )
    if config.hadamard is not None:
        choices.warn(
            "write-gguf-hadamard",
            f"{path} has weights in a basis of Hadamard blocks of {config.hadamard.block_size}, which the entries "
            "prism.hadamard.* say: bittorch and PrismML's fork of llama.cpp read them, and other programs, which may "
            "ignore them, would give nonsense",
        )


def _table(source: Checkpoint, type_name: str, allow_lossy: bool, dense_dtype: torch.dtype | None) -> list[Entry]:
    """The tensors that the source has, experts in one tensor."""
    architecture = architectures.find(source.config.architecture)
    groups: dict[str, list[str]] = {}
    for name in source.names:
        groups.setdefault(stacked_name(name), []).append(name)
    zeros = {name for names in groups.values() for name in _zeros(source, names)}
    table = []
    for stack, names in groups.items():
        entries = [
            _entry(source, name, name in zeros, architecture, type_name, allow_lossy, dense_dtype) for name in names
        ]
        table.append(_stack(entries, stack))
    return table


def _name(architecture: Architecture, config: ModelConfig, type_name: str) -> str:
    """The file's general.architecture. Raises LossyError where it would imply another activation."""
    name = architecture.gguf_name(config, type_name)
    for entry in architecture.entries:
        if entry.gguf is None and (value := getattr(config, entry.field)) != entry.meant:
            raise LossyError(
                f"GGUF has no entry of {name} for {entry.field}={value!r:.100}, and means {entry.meant!r}; write "
                "bittorch"
            )
    if config.input_norm_eps not in (0, config.rms_norm_eps):
        raise LossyError(
            f"GGUF has one eps for all norms, but rms_norm_eps is {config.rms_norm_eps} and input_norm_eps "
            f"{config.input_norm_eps}; write bittorch"
        )
    if architecture.gguf[name] not in (None, config.hidden_act):
        raise LossyError(
            f"GGUF has no architecture with hidden_act={config.hidden_act} for {config.architecture}: {name} implies "
            f"{architecture.gguf[name]}; write bittorch"
        )
    return name


def _carried(source: Checkpoint) -> dict[str, Any]:
    """Descriptions and the tokenizer."""
    tokenizer = source.tokenizer_source
    if isinstance(tokenizer, Path):
        return {"general.name": source.path.name, **tokenizer_entries(tokenizer, source.config)}
    general = {key: value for key, value in source.metadata.items() if key.startswith("general.")}
    return {key: value for key, value in {**general, **tokenizer}.items() if key not in OWN_ENTRIES}


def _zeros(source: Checkpoint, names: Sequence[str]) -> list[str]:
    """Experts of a stack that are floats, all zeros, among ternary ones: as trits they are the same."""
    if not any(source.info(name).ternary for name in names):
        return []
    return [name for name in names if not source.info(name).ternary and not bool(source.dense(name).any())]


def _entry(
    source: Checkpoint,
    name: str,
    zeros: bool,
    architecture: Architecture,
    type_name: str,
    allow_lossy: bool,
    dense_dtype: torch.dtype | None,
) -> Entry:
    info, form = source.info(name), architecture.gguf_form(source.config, name)
    own_name = gguf_name(name, architecture.gguf_layer)
    if info.ternary or zeros:
        kind = TYPES[TYPE_IDS[type_name]]
        flat = 128 if type_name == "I2_S" else kind.weights
        cut = info.shape[0] * info.shape[1] if type_name == "I2_S" else info.shape[1]
        if cut % flat or info.shape[1] % 4:
            other = "write Q2_0 or bittorch" if flat > 64 and not info.shape[1] % 64 else "write bittorch"
            raise LossyError(
                f"{name} of shape {info.shape} is not cut into blocks of {flat} weights of {type_name}; {other}"
            )

        def trits() -> Iterator[Any]:
            weight = _packed_zeros(*info.shape) if zeros else source.packed(name)
            refuse_depth(name, weight, "GGUF")
            weight = weight if form.rows is None else weight.reordered(form.rows)
            weight = weight if form.columns is None else reordered_columns(weight, form.columns)
            return _i2_s(name, weight) if type_name == "I2_S" else _blocks(name, weight, type_name, allow_lossy)

        return Entry(own_name, type_name, info.shape, trits, (name,))
    weight = source.blocks(name) if dense_dtype is None and form.plain else None
    if weight is not None and weight.kind in TYPE_IDS:
        return Entry(own_name, weight.kind, info.shape, lambda: iter([weight.blocks.numpy()]), (name,))
    single = len(info.shape) == 1 or form.squeezed
    dtype = torch.float32 if single else dense_dtype or PLAIN.get(info.type, torch.float32)

    def floats() -> Iterator[Any]:
        values = form.to_file(source.dense(name, dtype))
        yield values.contiguous().reshape(-1).view(torch.uint8).numpy()

    plain = next(key for key, value in PLAIN.items() if value == dtype)
    shape = (info.shape[0], *info.shape[2:]) if form.squeezed else info.shape
    return Entry(own_name, plain, shape, floats, (name,))


def _stack(entries: list[Entry], stack: str) -> Entry:
    """The weights of all experts as one tensor, by their numbers; what stands alone as it is.

    Raises:
        LossyError: experts that are not stored alike; I2_S.
    """
    first = entries[0]
    if first.holds == (stack,):
        return first
    if first.type_name == "I2_S":
        raise LossyError(
            f"{stack} has scales of {len(entries)} experts, I2_S one for the tensor; write TQ2_0 or bittorch"
        )
    entries = sorted(entries, key=lambda entry: int(entry.holds[0].partition(".experts.")[2].partition(".")[0]))
    if other := next((entry for entry in entries if entry.type_name != first.type_name), None):
        raise LossyError(
            f"GGUF has all experts in one tensor, but {first.holds[0]} is {first.type_name} and {other.holds[0]} "
            f"{other.type_name}; write bittorch"
        )
    names = [name for entry in entries for name in entry.holds]
    shape = (len(entries), *first.shape)
    return Entry(
        first.name, first.type_name, shape, lambda: itertools.chain(*(entry.data() for entry in entries)), names
    )


def _packed_zeros(rows: int, columns: int) -> PackedWeight:
    return PackedWeight(torch.zeros((rows, columns // 4), dtype=torch.uint8), torch.ones(1), columns)


def _i2_s(name: str, weight: PackedWeight) -> Iterator[Any]:
    if weight.scale.numel() != 1:
        raise LossyError(
            f"{name} has scales {tuple(weight.scale.shape)}, I2_S one for the tensor; write TQ2_0 or bittorch"
        )
    blocks = weight.weight_packed.numpy().reshape(-1, 32)
    for begin, end in chunks(len(blocks), 128):
        yield codecs.encode_i2_s(codecs.unpack(blocks[begin:end], 128))
    tail = np.zeros(8, "<f4")
    tail[0] = float(weight.scale)
    yield tail


_ENCODERS: dict[str, Callable[[codecs.Codes, codecs.Halves], codecs.Bytes]] = {
    "TQ1_0": codecs.encode_tq1_0,
    "TQ2_0": codecs.encode_tq2_0,
    "Q2_0": codecs.encode_q2_0,
}


def _blocks(name: str, weight: PackedWeight, type_name: str, allow_lossy: bool) -> Iterator[Any]:
    size = TYPES[TYPE_IDS[type_name]].weights
    scale = _half_scales(name, weight, size, type_name, allow_lossy)
    blocks = weight.weight_packed.numpy().reshape(-1, size // 4)
    for begin, end in chunks(len(blocks), size):
        yield _ENCODERS[type_name](codecs.unpack(blocks[begin:end], size), scale[begin:end])


def _half_scales(name: str, weight: PackedWeight, size: int, type_name: str, allow_lossy: bool) -> codecs.Halves:
    """The scale of every block as float16."""
    rows, columns = weight.out_features, weight.in_features
    scale = weight.scale[:, None] if weight.scale.numel() > 1 and weight.scale.dim() == 1 else weight.scale
    group = columns // scale.shape[1] if scale.dim() == 2 else columns
    if group % size:
        raise LossyError(f"{name} has a scale for {group} weights, {type_name} one for {size}; write Q2_0 or bittorch")
    half = scale.half()
    nonzero = scale[scale != 0]
    worst = float((nonzero.half().double() / nonzero.double() - 1).abs().max()) if nonzero.numel() else 0.0
    if not bool(torch.isfinite(half).all()) or worst > 2**-10:
        raise LossyError(f"{name} has scales beyond the range of float16, which {type_name} stores")
    if worst > 0 and not allow_lossy:
        raise LossyError(
            f"{name}: {type_name} stores scales in float16, which changes them by up to {worst:.2e}; "
            "say allow_lossy to write it nevertheless"
        )
    if half.dim() == 1:
        return np.broadcast_to(half.numpy(), (rows * columns // size,))
    return np.asarray(half.repeat_interleave(group // size, dim=1).numpy().reshape(-1))


def _write_header(file: BinaryIO, entries: Mapping[str, Any], table: list[Entry]) -> None:
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(table), len(entries)))
    for key, value in entries.items():
        out += _string(key) + _value(key, value)
    offset = 0
    for entry in table:
        out += _string(entry.name) + struct.pack("<I", len(entry.shape))
        out += struct.pack(f"<{len(entry.shape)}Q", *entry.shape[::-1])
        out += struct.pack("<IQ", TYPE_IDS[entry.type_name], offset)
        offset = -(-(offset + entry.bytes) // ALIGNMENT) * ALIGNMENT
    file.write(out)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """Type and bytes of an entry: 32-bit numbers, unsigned alone and signed in arrays, as llama.cpp reads them."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, int):
        code, kind = ("I", 4) if 0 <= value < 2**32 else ("q", 11) if value < 2**63 else ("Q", 10)
        return struct.pack("<I" + code, kind, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if key == CHARSMAP:
        return struct.pack("<IIQ", 9, 0, len(value)) + bytes(item & 255 for item in value)
    if isinstance(value, list | tuple):
        return struct.pack("<I", 9) + _array(key, list(value))
    raise FormatError(f"the entry {key!r:.100} is a {type(value).__name__}, which GGUF cannot hold")


def _array(key: str, items: list[Any]) -> bytes:
    if items and all(isinstance(item, str) for item in items):
        return struct.pack("<IQ", 8, len(items)) + b"".join(_string(item) for item in items)
    for kinds, code, number in ((bool, "?", 7), (int, "i", 5), (int, "q", 11), (int, "Q", 10), (int | float, "f", 6)):
        if all(isinstance(item, kinds) for item in items):
            try:
                return struct.pack(f"<IQ{len(items)}{code}", number, len(items), *items)
            except struct.error:  # too large for this width
                continue
    raise FormatError(f"the entry {key!r:.100} is a list that GGUF cannot hold")
