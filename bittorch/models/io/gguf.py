"""GGUF files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch.models.architectures.base import Architecture, Form
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io import choices, codecs
from bittorch.models.io.blocks import KINDS, Blocks, check_finite
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.errors import FormatError
from bittorch.models.io.exact_ternary import recognised
from bittorch.models.io.gguf_hadamard import hadamard_of
from bittorch.models.io.gguf_header import GGUFTensor
from bittorch.models.io.gguf_names import architecture_of, canonical_name, config_from_gguf
from bittorch.models.io.gguf_rope import ROPE_TENSORS
from bittorch.models.io.gguf_split import read_parts
from bittorch.models.io.gguf_types import PRISM
from bittorch.models.io.stacks import cut_bytes, unstacked
from bittorch.models.io.ternary_tensor import TernaryTensor, chunks, collapse_scale, reordered_columns
from bittorch.models.packed_weight import BlockWeight, PackedWeight

_BLOCK_DECODERS: dict[str, Callable[[Bytes, Bytes], tuple[Bytes, codecs.Halves]]] = {
    "TQ1_0": codecs.decode_tq1_0,
    "TQ2_0": codecs.decode_tq2_0,
    "Q2_0": codecs.decode_q2_0,
    "Q2_0_128": codecs.decode_q2_0,
    "PQ2_0": codecs.decode_q2_0,
    "PTQ1_0": codecs.decode_ptq1_0,
    "STQ1_0": codecs.decode_stq1_0,
}
TERNARY = {*_BLOCK_DECODERS, "I2_S"}
SAME_BLOCKS = {"PQ2_0": "Q2_0_128"}  # what `bittorch.models.io.blocks` calls them
FOUR_VALUES = ("Q2_0", "Q2_0_128", "PQ2_0")  # whose fourth code is +2
NEXTN, MOST_NEXTN = "nextn_predict_layers", 64
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GGUFDense(StoredTensor):
    """Floats, or blocks of integers that stand for floats."""

    def __init__(self, name: str, stored: GGUFTensor, factor: float | None = None) -> None:
        super().__init__(TensorInfo(name, stored.type.name, stored.shape, stored.bytes), stored.file.path)
        self.file, self.stored, self.factor = stored.file, stored, factor

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        values = self._plain(dtype) if self.info.type in PLAIN else self._blocks().dense(dtype or torch.float32)
        return values if self.factor is None else values * self.factor

    def release(self) -> None:
        self.file.release(self.stored.offset, self.stored.bytes)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        if self.info.type not in PLAIN or self.factor is not None:
            return self.dense(dtype)
        return self.file.copied(self._plain(None), self.stored.offset, dtype or PLAIN[self.info.type])

    def _plain(self, dtype: torch.dtype | None) -> Tensor:
        own = PLAIN[self.info.type]
        data = self.file.view(self.stored.offset, self.stored.bytes)
        if self.stored.offset % own.itemsize:
            data = data.copy()
        tensor = torch.from_numpy(data).view(own).view(self.info.shape)
        return tensor if dtype in (None, own) else self.file.copied(tensor, self.stored.offset, dtype)

    def blocks(self) -> BlockWeight | None:
        if self.info.type in PLAIN or self.factor is not None or len(self.info.shape) != 2:
            return None
        return self._blocks().weight()

    def _blocks(self) -> Blocks:
        kind = SAME_BLOCKS.get(self.info.type, self.info.type)
        if kind not in KINDS:
            known = ", ".join(dict.fromkeys([*PLAIN, *KINDS, *sorted(TERNARY)]))
            raise FormatError(
                f"{self.stored.name} is of type {self.info.type}, which is not decoded; known are {known}"
            )
        return Blocks(self.file, self.stored.offset, kind, self.info.shape, self.where)


class GGUFTernary(TernaryTensor):
    """Blocks of trits, each with its scale; or I2_S, with one scale behind them all."""

    def __init__(self, name: str, stored: GGUFTensor, factor: float | None, i2_s_layout: str) -> None:
        info = TensorInfo(name, stored.type.name, stored.shape, stored.bytes, ternary=True)
        super().__init__(info, stored.file.path)
        self.file, self.stored, self.factor, self.i2_s_layout = stored.file, stored, factor, i2_s_layout
        if info.type in FOUR_VALUES:
            self.reserved_means = (
                f"{info.type} means +2 by it, so the model is not ternary; convert its floats with --depth"
            )

    def decode(self, out: Bytes) -> Tensor:
        scale = self._i2_s(out) if self.info.type == "I2_S" else self._scaled_blocks(out)
        self.file.release(self.stored.offset, self.stored.bytes)
        return scale if self.factor is None else scale * self.factor

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        if self.info.type in FOUR_VALUES:  # which are legal where nobody asks for trits
            return GGUFDense(self.info.name, self.stored, self.factor).dense(dtype)
        return super().dense(dtype)

    def _scaled_blocks(self, out: Bytes) -> Tensor:
        kind = self.stored.type
        flat = out.reshape(-1, kind.weights // 4)
        scale = np.empty(len(flat), np.float32)
        for begin, end in chunks(len(flat), kind.weights):
            blocks = self.file.view(self.stored.offset + begin * kind.bytes, (end - begin) * kind.bytes)
            _, scale[begin:end] = _BLOCK_DECODERS[kind.name](blocks.reshape(-1, kind.bytes), flat[begin:end])
        check_finite(scale[:, None], 0, kind.weights, self.info.shape[-1], self.where)
        if (scale == scale[0]).all():
            return torch.from_numpy(scale[:1].copy())
        blank = ~flat.any(axis=1)
        rows = self.info.shape[0]
        return collapse_scale(scale.reshape(rows, -1), blank.reshape(rows, -1))

    def _i2_s(self, out: Bytes) -> Tensor:
        rows, columns = self.info.shape
        begin, size = self.stored.offset, rows * columns // 4
        data = self.file.view(begin, size)
        if self.i2_s_layout == "rows4":
            codecs.decode_fields(data.reshape(rows // 4, columns), columns, "i2_s_rows4", out)
        else:
            weights = 4 * int(self.i2_s_layout.partition("x")[2])
            whole = columns if columns % weights == 0 else weights  # blocks may go on in the next row
            lines, places = data.reshape(-1, whole // 4), out.reshape(-1, whole // 4)
            codecs.decode_fields(lines, whole, f"i2_s_{self.i2_s_layout}", places)
        tail = self.file.view(begin + size, 4).copy()
        return torch.from_numpy(tail).view(torch.float32)


class Formed(StoredTensor):
    """A tensor of a file that has it in a form of its own, as transformers has it."""

    def __init__(self, inner: StoredTensor, form: Form) -> None:
        rows, *rest = inner.info.shape
        shape = (rows, 1, *rest) if form.squeezed else (rows, *rest)
        super().__init__(dataclasses.replace(inner.info, shape=shape), inner.path)
        self.inner, self.form, self.rounds = inner, form, form.rounds

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        values = self.form.of_file(self.inner.dense(torch.float32 if self.rounds else dtype))
        self.release()
        return values.to(dtype or torch.float32) if self.rounds else values

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.dense(dtype).clone() if self.form.rows is None else self.dense(dtype)

    def release(self) -> None:
        self.inner.release()

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        weight = self.inner.packed()
        weight = weight if self.form.rows is None else weight.reordered(self.form.rows.argsort())
        return weight if self.form.columns is None else reordered_columns(weight, self.form.columns.argsort())


def open_gguf(
    path: Path, i2_s_layout: str = "128x32", ternary: str = "auto", override: Mapping[str, Any] | None = None
) -> Checkpoint:
    """A GGUF file's checkpoint. Raises as `open_checkpoint`."""
    if i2_s_layout not in codecs.I2S_LAYOUTS:
        raise ValueError(f"i2_s_layout must be one of {', '.join(codecs.I2S_LAYOUTS)}, got {i2_s_layout!r}")
    files, entries, table = read_parts(path)
    architecture, stored = architecture_of(entries, str(path)), {}
    table = _used(table, entries, architecture, str(path))
    for name, tensor in table.items():
        if (canonical := canonical_name(name, architecture.gguf_layer)) is not None and not name.endswith(".scale"):
            # A gate of one row stands as a vector.
            row = canonical.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1
            stored[canonical] = dataclasses.replace(tensor, shape=(1, *tensor.shape)) if row else tensor
    factors = {name: _rope_factors(table[name]) for name in ROPE_TENSORS if name in table}
    given = override or {}
    config = config_from_gguf(entries, stored, factors, str(path), given)
    hadamard = hadamard_of(entries, {tensor.name: name for name, tensor in stored.items()}, config, str(path))
    head = stored.pop(HEAD, None) if config.tie_embeddings and "tie_embeddings" in given else None
    if any(tensor.type.name == "I2_S" for tensor in stored.values()):
        choices.note(
            "gguf-i2_s-layout",
            f"{path}: I2_S blocks are read as i2_s_layout={i2_s_layout!r}; the file does not say how they lie",
        )
    rotated = [tensor for tensor in table.values() if tensor.type.name in PRISM]
    if hadamard is not None:
        config = dataclasses.replace(config, hadamard=hadamard)
    elif rotated:
        choices.warn(
            "gguf-unrotated",
            f"{path}: {rotated[0].name} is {rotated[0].type.name}, whose models rotate activations, and the file has "
            "no prism.hadamard entry: activations are not rotated, as PrismML's program does with such a file; where "
            "the text is nonsense the file has lost its entries, and the original is needed",
        )
    stored = unstacked(stored, _rows_of, str(path), config.num_experts)
    used = {tensor.name for tensor in (*stored.values(), *([head] if head else []))} | factors.keys()
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        factor_name = tensor.name.removesuffix("weight") + "scale"
        used.add(factor_name)
        tensors[name] = _stored(name, tensor, _factor(table.get(factor_name)), i2_s_layout)
    tensors = recognised(tensors, str(path), ternary)
    widest = max(number for tensor in stored.values() for number in tensor.shape)
    # What no tensor is large enough for is refused for its shape; no order of so many rows is made before.
    formed = max(config.num_heads * config.head_dim, config.delta_channels) <= widest
    for name, tensor in stored.items() if formed else ():
        form = architecture.gguf_form(config, name)
        if not form.plain and form.fits(tensor.shape):
            tensors[name] = Formed(tensors[name], form)
    if unknown := [name for name in table if name not in used]:
        raise FormatError(
            f"{path} has {len(unknown)} tensors that no part of the model uses, first {unknown[0]!r:.100}"
        )
    tokenizer = {key: value for key, value in entries.items() if key.startswith("tokenizer.")}
    return Checkpoint(path, "gguf", config, tensors, entries, tokenizer, files)


def _used(
    table: dict[str, GGUFTensor], entries: Mapping[str, Any], architecture: Architecture, what: str
) -> dict[str, GGUFTensor]:
    """The tensors without those of layers that predict tokens beyond the next. Warns of these."""
    if NEXTN not in architecture.gguf_read:
        return table
    last, count = (entries.get(f"{entries['general.architecture']}.{key}", 0) for key in ("block_count", NEXTN))
    if type(last) is not int or type(count) is not int or count < 1:
        return table
    prefixes = tuple(f"blk.{layer}." for layer in range(max(0, last - min(count, MOST_NEXTN)), last))
    if skipped := [name for name in table if name.startswith(prefixes)]:
        choices.warn(
            "skipped-parts",
            f"{what}: {len(skipped)} tensors are of {count} layers for tokens beyond the next, such as {skipped[0]}: "
            "they are left out, and are not written again",
        )
    return {name: tensor for name, tensor in table.items() if not name.startswith(prefixes)}


def _rows_of(stack: GGUFTensor, rows: slice) -> GGUFTensor:
    if stack.type.tail:
        raise FormatError(
            f"{stack.file.path}: {stack.name} of shape {stack.shape} is {stack.type.name}, which has one scale for a "
            "tensor; experts in one tensor are not read of this type"
        )
    return cut_bytes(stack, rows)


def _stored(name: str, tensor: GGUFTensor, factor: float | None, i2_s_layout: str) -> StoredTensor:
    if tensor.type.name not in TERNARY or (name == EMBEDDING and _has_fourth_value(tensor)):
        return GGUFDense(name, tensor, factor)
    if len(tensor.shape) != 2 or tensor.shape[1] % 4:
        raise FormatError(f"{tensor.name} is {tensor.type.name} of shape {tensor.shape}; rows must be multiples of 4")
    rows, columns = tensor.shape
    if tensor.type.name == "I2_S":
        unit = 4 if i2_s_layout == "rows4" else 4 * int(i2_s_layout.partition("x")[2])
        if (rows if i2_s_layout == "rows4" else rows * columns) % unit:
            raise FormatError(f"{tensor.name} of shape {tensor.shape} is not cut into I2_S blocks {i2_s_layout}")
    return GGUFTernary(name, tensor, factor, i2_s_layout)


def _has_fourth_value(tensor: GGUFTensor) -> bool:
    """Whether a tensor of a type that has it holds a +2, which no trit is."""
    kind = tensor.type
    if kind.name not in FOUR_VALUES:
        return False
    for begin, end in chunks(tensor.bytes // kind.bytes, kind.weights):
        data = tensor.file.view(tensor.offset + begin * kind.bytes, (end - begin) * kind.bytes)
        fields = data.reshape(-1, kind.bytes)[:, 2:]
        if (fields & (fields >> np.uint8(1)) & np.uint8(0x55)).any():
            return True
    tensor.file.release(tensor.offset, tensor.bytes)
    return False


def _rope_factors(tensor: GGUFTensor) -> tuple[float, ...]:
    if tensor.type.name != "F32" or len(tensor.shape) != 1:
        raise FormatError(f"{tensor.name} must be F32 of one dimension, got {tensor.type.name} {tensor.shape}")
    values: Any = tensor.file.view(tensor.offset, tensor.bytes).copy().view("<f4")
    if not (np.isfinite(values) & (values > 0)).all():
        raise FormatError(f"{tensor.name} must be positive and finite; the file is damaged")
    return tuple(values.tolist())


def _factor(tensor: GGUFTensor | None) -> float | None:
    """The scalar that some converters store beside a weight, by which it is to be multiplied."""
    if tensor is None:
        return None
    if tensor.type.name != "F32" or tensor.bytes != 4:
        raise FormatError(f"{tensor.name} must be one F32, got {tensor.type.name} {tensor.shape}")
    value = float(tensor.file.view(tensor.offset, 4).copy().view("<f4")[0])
    if not np.isfinite(value):
        raise FormatError(f"{tensor.name} is {value}; the file is damaged")
    return value
