"""Directories of config.json and one safetensors file, written tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bittorch.models import architectures
from bittorch.models.config import EMBEDDING, HEAD, ModelConfig
from bittorch.models.io import choices
from bittorch.models.io.checkpoint import Checkpoint
from bittorch.models.io.directory_format import Layout
from bittorch.models.io.errors import LossyError
from bittorch.models.io.exact_ternary import LINEAR
from bittorch.models.io.hf_config import config_to_hf, note_of
from bittorch.models.io.safetensors_header import DTYPES
from bittorch.models.io.ternary_tensor import chunks
from bittorch.models.packed_weight import BlockWeight

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What the header needs at most for a tensor besides its name: offsets and shape of 20 digits, a layer's configuration.
HEADER_PER_TENSOR = 512


class SafetensorsFile:
    """A safetensors file whose header is written last, in space kept for it."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.reserved = -(-(4096 + sum(HEADER_PER_TENSOR + 6 * len(name) for name in names)) // 64) * 64 - 8
        self.header: dict[str, Any] = {}
        self.file = open(path, "xb")  # noqa: SIM115, closed by its owner
        self.file.seek(8 + self.reserved)
        self.end = 0

    def add(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().contiguous()
        size = data.numel() * data.element_size()
        self.header[name] = {
            "dtype": DTYPE_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self.end, self.end + size],
        }
        self.file.write(data.reshape(-1).view(torch.uint8).numpy().data)
        self.end += size

    def finish(self, metadata: Mapping[str, str]) -> None:
        text = json.dumps({"__metadata__": dict(metadata), **self.header}).encode()
        assert len(text) <= self.reserved
        self.file.seek(0)
        self.file.write(self.reserved.to_bytes(8, "little") + text.ljust(self.reserved))
        self.file.flush()
        os.fsync(self.file.fileno())


def write_directory(
    source: Checkpoint, path: Path, layout: Layout, dense_dtype: torch.dtype | None, seen: Callable[[str], None]
) -> None:
    """Writes config.json and model.safetensors into an empty directory.

    Args:
        source: what to write.
        path: the directory.
        layout: how ternary weights are stored.
        dense_dtype: of the tensors that are not ternary; None keeps theirs.
        seen: called with each name when it has been written.

    Raises:
        LossyError: what the layout cannot hold.
    """
    values = config_to_hf(source.config)
    if not layout.own:
        _refuse_unsaid(source.config, values)
    ternary = _ternary(source, layout)
    others = [name for name in source.names if name not in ternary]
    biases = {name: name.removesuffix("bias") + "weight" for name in others if name.endswith(".bias")}
    if dense_dtype is None and layout.one_dtype:
        rounds = layout.rounds_biases and any(weight in ternary for weight in biases.values())
        dense_dtype = torch.float32 if rounds else _one_dtype(source, others)
    file = SafetensorsFile(path / "model.safetensors", source.names)
    try:
        # Floats first: packed rows may end at any byte, and what follows them would not be aligned.
        floats = [name for name in others if biases.get(name) not in ternary]
        _write_floats(file, source, floats, layout, dense_dtype, seen)
        for name in ternary:
            bias = f"{name.removesuffix('.weight')}.bias"
            _write_ternary(file, source, name, bias if bias in biases else None, layout, dense_dtype, seen)
        file.finish(layout.metadata())
    finally:
        file.file.close()
    gates = (".mlp.gate.weight", ".shared_expert_gate.weight")
    linear = {HEAD, *(name for name in others if LINEAR.fullmatch(name) or name.endswith(gates))}
    dense = sorted(name.removesuffix(".weight") for name in linear - ternary.keys())
    if ternary:
        values["quantization_config"] = layout.quantization(dense)
    if dense_dtype is not None:
        values["dtype"] = str(dense_dtype).removeprefix("torch.")
    values["bittorch"] = note_of(source.config)
    (path / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _refuse_unsaid(config: ModelConfig, values: Mapping[str, Any]) -> None:
    """Raises LossyError for what a config.json of these values does not tell transformers."""
    if config.hadamard is not None:
        raise LossyError(
            f"the model has weights in a basis of Hadamard blocks of {config.hadamard.block_size}, such as "
            f"{config.hadamard.weights[0]}, and transformers has no entry that says so; write bittorch or GGUF"
        )
    biases_read = architectures.find(config.architecture).hf_biases(values)
    if set(biases_read) != set(config.biases):
        raise LossyError(
            f"the model has biases of {', '.join(config.biases)}; transformers reads config.json as biases of "
            f"{', '.join(biases_read)}, and has no entry that says otherwise; write bittorch or GGUF"
        )
    if config.input_norm_eps:
        raise LossyError(
            "the model has norms of the input of each matrix, for which bittorch and GGUF have names: write these"
        )


def _ternary(source: Checkpoint, layout: Layout) -> dict[str, None]:
    """The names of what is written as trits, in order."""
    ternary = dict.fromkeys(name for name in source.names if source.info(name).ternary)
    if EMBEDDING in ternary and not layout.own:
        del ternary[EMBEDDING]
        kind = source.info(EMBEDDING).type
        choices.warn(
            "write-dense-embedding",
            f"{source.path}: {EMBEDDING} of type {kind} is written as floats, because other programs know packed "
            "embeddings in GGUF files alone; write bittorch or GGUF to keep it",
        )
    return ternary


def _write_floats(
    file: SafetensorsFile,
    source: Checkpoint,
    names: Sequence[str],
    layout: Layout,
    dtype: torch.dtype | None,
    seen: Callable[[str], None],
) -> None:
    """What is not ternary; behind it the matrices that stay in quantised blocks."""
    blocks: dict[str, BlockWeight] = {}
    for name in names:
        if layout.own and dtype is None and (kept := source.blocks(name)) is not None:
            blocks[name] = kept
        else:
            file.add(name, source.dense(name, dtype))
            seen(name)
    for name, kept in blocks.items():
        file.add(f"{name}_blocks", layout.blocks(name, kept))
        seen(name)


def _write_ternary(
    file: SafetensorsFile,
    source: Checkpoint,
    name: str,
    bias: str | None,
    layout: Layout,
    dtype: torch.dtype | None,
    seen: Callable[[str], None],
) -> None:
    """A ternary weight, and its bias where it has one."""
    weight, module = source.packed(name), name.removesuffix(".weight")
    for part, tensor in layout.parts(name, weight).items():
        file.add(f"{module}.{part}", tensor)
    if bias is not None:
        file.add(bias, layout.bias(module, source.dense(bias, dtype), weight))
        seen(bias)
    seen(name)


def _one_dtype(source: Checkpoint, names: list[str]) -> torch.dtype:
    """That of all these tensors; else bfloat16 where it holds every value exactly, else float32."""
    kinds = {source.info(name).type for name in names}
    if len(kinds) == 1 and (kind := kinds.pop()) in DTYPES:
        return DTYPES[kind]
    for name in sorted(names, key=lambda name: source.info(name).bytes):  # the embedding last
        exact = _holds(torch.bfloat16, source.dense(name))
        source.release(name)
        if not exact:
            return torch.float32
    return torch.bfloat16


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    flat = values.reshape(-1)
    return all(bool((flat[a:b] == flat[a:b].to(dtype)).all()) for a, b in chunks(len(flat), 1))
