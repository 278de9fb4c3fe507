"""From any format that is read to any that is written, verified by reading back."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bittorch.models.config import EMBEDDING, ModelConfig
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.errors import FormatError, LossyError
from bittorch.models.io.formats import targets
from bittorch.models.io.generation_defaults import generation_defaults, write_defaults
from bittorch.models.io.gguf_tokenizer import write_entries
from bittorch.models.io.gguf_writer import GGUF_TARGETS, write_gguf
from bittorch.models.io.hf_writer import write_directory
from bittorch.models.io.open import open_checkpoint
from bittorch.models.io.target import check_replaced
from bittorch.models.io.ternary_tensor import chunks, dequantize
from bittorch.models.io.tokenizer_files import copy_tokenizer
from bittorch.models.packed_weight import BlockWeight, PackedWeight
from bittorch.models.rope import rope_frequencies
from bittorch.utils.replacement import check_place, replacing

TARGETS = (*targets(), *GGUF_TARGETS)
HALF_EPS = 2**-10  # the most that rounding to float16 moves a scale, relative

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written and found again: bytes, tensors compared, and the largest relative change of a scale."""

    path: Path
    bytes: int
    tensors: int
    ternary: int
    scale_error: float


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str,
    progress: Progress | None = None,
    allow_lossy: bool = False,
    allow_dense: bool = False,
    dense_dtype: torch.dtype | None = None,
    overwrite: bool = False,
    ternary: str = "auto",
    i2_s_layout: str = "128x32",
    hidden_act: str | None = None,
    override: Mapping[str, Any] | None = None,
    pre_tokenizer: str | None = None,
    tokenizer: str | Path | None = None,
) -> Report:
    """Writes a checkpoint in another format, tensor by tensor, and reads it back before it has its name.

    Args:
        src: what `open_checkpoint` opens.
        dst: a directory, or a file for the GGUF formats.
        to: one of `TARGETS`.
        progress: called with (done, all, name) as tensors are written, then again as they are compared.
        allow_lossy: write although values change; the report says by how much.
        allow_dense: write a model although none of its tensors is ternary, which makes it no smaller.
        dense_dtype: of the tensors that are not ternary; None keeps theirs, and float32 for blocks of integers that
            the format does not know.
        overwrite: replace the checkpoint at ``dst`` in one step, once the new one is whole. A directory that holds
            anything besides a checkpoint's files is refused.
        ternary, i2_s_layout, hidden_act, override, pre_tokenizer, tokenizer: as in `open_checkpoint`, for reading.

    Returns:
        What was written.

    Raises:
        FileExistsError: ``dst`` is there and ``overwrite`` is False, or it is no checkpoint alone.
        FileNotFoundError: no directory to write ``dst`` in.
        FormatError: the source is damaged, or what was written does not read back as it was.
        LossyError: the format cannot hold the model exactly.
        ValueError: options out of range; a model without ternary tensors where ``allow_dense`` is False.
        OSError: a disk that is full, say; nothing is left behind.
    """
    check_target(dst, to=to, overwrite=overwrite)
    with open_checkpoint(
        Path(src),
        ternary=ternary,
        i2_s_layout=i2_s_layout,
        hidden_act=hidden_act,
        override=override,
        pre_tokenizer=pre_tokenizer,
        tokenizer=tokenizer,
    ) as source:
        if not allow_dense:
            _refuse_dense(source)
        return save(
            source, dst, to=to, progress=progress, allow_lossy=allow_lossy, dense_dtype=dense_dtype, overwrite=overwrite
        )


def _refuse_dense(source: Checkpoint) -> None:
    """Raises ValueError for a model without ternary tensors."""
    if not any(source.info(name).ternary for name in source.names):
        raise ValueError(
            f"{source.path} has no ternary tensor, and would be written dense, at its size or larger; convert its "
            "layers into planes of trits first (depth= of LanguageModel.from_pretrained, and save_pretrained), or say "
            "allow_dense"
        )


def save(
    source: Checkpoint,
    dst: str | os.PathLike[str],
    *,
    to: str = "bittorch",
    progress: Progress | None = None,
    allow_lossy: bool = False,
    dense_dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Report:
    """Writes an open checkpoint, from a file or of `from_memory`; otherwise as `convert`."""
    place = _place(to, overwrite)
    if not to.startswith("bittorch") and not allow_lossy:
        _check_activation_bits(source, to)
    report = progress or (lambda done, total, name: None)
    with replacing(Path(dst), **place) as path:
        names, count = source.names, 0

        def seen(name: str) -> None:
            nonlocal count
            count += 1
            source.release(name)
            report(count, 2 * len(names), name)

        rounded = False
        if to in GGUF_TARGETS:
            write_gguf(source, path, GGUF_TARGETS[to], allow_lossy, dense_dtype, seen)
        else:
            path.mkdir()
            layout = targets()[to].layout(to, source, allow_lossy)
            rounded = layout.rounds_biases and allow_lossy
            write_directory(source, path, layout, dense_dtype, seen)
            if isinstance(source.tokenizer_source, Path):
                copy_tokenizer(source.tokenizer_source, path)
            else:
                write_entries(source.tokenizer_source, path)
                write_defaults(generation_defaults(source), source.config, path)
        error = _compare(source, path, to, allow_lossy, dense_dtype, seen, rounded)
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        ternary = sum(source.info(name).ternary for name in names)
        return Report(Path(dst), sum(file.stat().st_size for file in files), len(names), ternary, error)


def check_target(dst: str | os.PathLike[str], *, to: str, overwrite: bool = False) -> None:
    """Raises the errors of `convert` that are about ``dst`` alone: before work that comes before it, not after."""
    check_place(Path(dst), **_place(to, overwrite))


def _place(to: str, overwrite: bool) -> dict[str, Any]:
    if to not in TARGETS:
        raise ValueError(f"to must be one of {', '.join(TARGETS)}, got {to!r}")
    directory = to in targets()
    check = functools.partial(check_replaced, directory=directory)
    return {"directory": directory, "overwrite": overwrite, "check": check}


def from_memory(
    config: ModelConfig,
    tensors: Mapping[str, Tensor | PackedWeight | BlockWeight],
    tokenizer_source: Path | Mapping[str, Any],
    activation_bits: Mapping[str, int | None] | None = None,
) -> Checkpoint:
    """A checkpoint of tensors that are in memory, for `save`.

    Args:
        config: the model.
        tensors: by canonical name, `PackedWeight` where ternary, ``BlockWeight`` where in quantised blocks.
        tokenizer_source: a directory with the tokenizer's files, or the entries of a GGUF file.
        activation_bits: of ternary tensors, by name, where they differ from those of ``config``.
    """
    bits: Mapping[str, int | Literal["model"] | None] = activation_bits or {}
    stored = {name: _InMemory(name, value, bits.get(name, "model")) for name, value in tensors.items()}
    return Checkpoint(Path("model"), "memory", config, stored, {}, tokenizer_source)


class _InMemory(StoredTensor):
    def __init__(
        self, name: str, value: Tensor | PackedWeight | BlockWeight, bits: int | Literal["model"] | None
    ) -> None:
        self.value = value
        if isinstance(value, PackedWeight):
            shape, size = (value.out_features, value.in_features), value.weight_packed.nbytes + value.scale.nbytes
            super().__init__(TensorInfo(name, "ternary", shape, size, ternary=True, activation_bits=bits))
        elif isinstance(value, BlockWeight):
            shape = value.out_features, value.in_features
            super().__init__(TensorInfo(name, value.kind, shape, value.blocks.nbytes))
        else:
            kind = str(value.dtype).removeprefix("torch.")
            kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(kind, kind)
            super().__init__(TensorInfo(name, kind, tuple(value.shape), value.nbytes))

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        if isinstance(self.value, PackedWeight):
            return dequantize(self.packed(), dtype or torch.float32)
        if isinstance(self.value, BlockWeight):
            return self.value.dense(dtype or torch.float32)
        return self.value.detach().cpu().to(dtype or self.value.dtype)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.dense(dtype).clone()

    def blocks(self) -> BlockWeight | None:
        return self.value if isinstance(self.value, BlockWeight) else None

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        if not isinstance(self.value, PackedWeight):
            return super().packed()
        codes, scale = self.value.weight_packed.cpu(), self.value.scale.cpu()
        scale = scale[:, 0] if scale.dim() == 2 and scale.shape[1] == 1 else scale
        return PackedWeight(codes, scale, self.value.in_features, self.value.depth)


def _check_activation_bits(source: Checkpoint, to: str) -> None:
    """Raises LossyError where layers differ, which our own format alone can hold."""
    for name in source.names:
        usual = source.usual_activation_bits(name)
        if source.info(name).ternary and source.activation_bits(name) != usual:
            raise LossyError(
                f"{name} has activation_bits={source.activation_bits(name)}, other "
                f"{'embeddings' if name == EMBEDDING else 'layers'} have {usual}; {to} has one value for the model. "
                "Write bittorch, or say allow_lossy"
            )


def _compare(
    source: Checkpoint,
    path: Path,
    to: str,
    allow_lossy: bool,
    dense_dtype: torch.dtype | None,
    seen: Callable[[str], None],
    rounded: bool,
) -> float:
    """Reads everything back. Returns the largest relative change of a scale; raises FormatError at any other change."""
    largest = 0.0
    with open_checkpoint(path, ternary="never") as written:  # as it is stored
        _compare_configs(source.config, written.config, allow_lossy)
        if set(source.names) != set(written.names):
            raise FormatError(f"{path} reads back other tensors: {set(source.names) ^ set(written.names)}")
        for name in source.names:
            if source.info(name).ternary and written.info(name).ternary:
                if source.activation_bits(name) != written.activation_bits(name) and not allow_lossy:
                    raise FormatError(f"{name} reads back with other activation_bits; this is a bug of the writer")
                largest = max(largest, _weight_error(name, source.packed(name), written.stored(name).packed()))
            elif not _same(
                source.dense(name),
                written.stored(name).dense(),
                dense_dtype,
                rounded or written.stored(name).rounds,
            ):
                raise FormatError(
                    f"{name} reads back changed; this is a bug of the writer of {to}, or the disk is damaged"
                )
            written.release(name)
            seen(name)
    if largest > (HALF_EPS if allow_lossy else 0):
        raise FormatError(f"a scale reads back changed by {largest:.2e}; this is a bug of the writer of {to}")
    return largest


def _compare_configs(before: ModelConfig, after: ModelConfig, allow_lossy: bool) -> None:
    """Equal, but for what a format writes in another way: frequencies as factors, floats in 32 bits."""
    for field in dataclasses.fields(ModelConfig):
        one, other = getattr(before, field.name), getattr(after, field.name)
        if field.name == "rope_scaling" and one != other:
            same = torch.allclose(rope_frequencies(before), rope_frequencies(after), rtol=1e-6)
        elif isinstance(one, float):
            same = torch.tensor(one).item() == torch.tensor(other).item()
        else:
            same = one == other or (field.name == "activation_bits" and allow_lossy)
            # The files of a tokenizer tell more of these.
            same = same or (field.name == "bos_token_id" and one is None)
            same = same or (field.name == "eos_token_ids" and set(one) <= set(other))
        if not same:
            raise LossyError(f"{field.name}={one!r:.200} reads back as {other!r:.200}; the format cannot hold it")


def _weight_error(name: str, before: PackedWeight, after: PackedWeight) -> float:
    """The largest relative change of a scale that some weight has. Raises FormatError where a trit differs."""
    same = (before.in_features, before.depth) == (after.in_features, after.depth)
    if not same or not torch.equal(before.weight_packed, after.weight_packed):
        raise FormatError(f"{name} reads back with other trits; this is a bug of the writer, or the disk is damaged")
    one, other = (weight.scale.double().reshape(len(weight.scale), -1) for weight in (before, after))
    groups = max(one.shape[1], other.shape[1])
    rows = len(before.weight_packed)
    # One scale of two is the other's refinement, or both are of one granularity.
    one, other = (s.repeat_interleave(groups // s.shape[1], dim=1).expand(rows, groups) for s in (one, other))
    change = (other / one - 1).abs().nan_to_num(0)  # 0 / 0: no change
    # No weight has the scale of a group of zeros.
    used = (before.weight_packed.view(rows, groups, -1) != 0).any(dim=2)
    return float(change[used.expand_as(change)].max()) if bool(used.any()) else 0.0


def _same(before: Tensor, after: Tensor, dense_dtype: torch.dtype | None, rounded: bool) -> bool:
    """Equal values, NaN included; after one rounding to ``dense_dtype`` where the writer was told to."""
    if before.shape != after.shape:
        return False
    one, other = before.reshape(-1), after.reshape(-1)
    return all(
        _same_part(one[begin:end], other[begin:end].float(), dense_dtype, rounded) for begin, end in chunks(len(one), 1)
    )


def _same_part(before: Tensor, after: Tensor, dense_dtype: torch.dtype | None, rounded: bool) -> bool:
    if rounded:
        eps = 2**-20 if dense_dtype is None else max(2**-20, torch.finfo(dense_dtype).eps)
        return torch.allclose(before.float(), after, rtol=eps, atol=2**-23, equal_nan=True)
    wanted = [before.float()] + ([before.to(dense_dtype).float()] if dense_dtype else [])
    return any(bool(((after == value) | (value.isnan() & after.isnan())).all()) for value in wanted)
