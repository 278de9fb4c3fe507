"""Ternary tensors in files: what all formats share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io.checkpoint import StoredTensor
from bittorch.models.io.codecs import Bytes, ReservedCode, reserved_kept
from bittorch.models.io.errors import FormatError
from bittorch.models.memory import new_tensor
from bittorch.models.packed_weight import PackedWeight

Floats = np.ndarray[Any, np.dtype[np.float32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
CHUNK = 1 << 20  # weights decoded at a time: fits the second-level cache with most temporaries, and calls weigh little


def chunks(count: int, weights_each: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover ``count`` items of ``weights_each`` weights, about `CHUNK` weights in each."""
    step = max(1, CHUNK // max(1, weights_each))
    return ((begin, min(begin + step, count)) for begin in range(0, count, step))


class TernaryTensor(StoredTensor):
    """Decodes to canonical bytes and a scale; readers say how."""

    depth = 1
    reserved_means = "the file is damaged"

    def decode(self, out: Bytes) -> Tensor:
        """Fills canonical ``(rows, ceil(columns / 4))`` bytes and returns the scale. Raises ReservedCode."""
        raise NotImplementedError

    def packed(self, out: Tensor | None = None) -> PackedWeight:
        rows, columns = self.info.shape
        if out is None or self.depth > 1:
            out = new_tensor((self.depth * rows, (columns + 3) // 4), torch.uint8)
        _check_room(out, self.depth * rows, (columns + 3) // 4, self.where)
        try:
            scale = self.decode(out.numpy())
        except ReservedCode as error:
            raise FormatError(f"{self.where} holds {error}{self._position(out)}; {self.reserved_means}") from None
        check_scale(scale, self.where, columns)
        return PackedWeight(out, scale, columns, self.depth)

    def _position(self, packed: Tensor) -> str:
        """Row and column of the first code that is no trit; overwrites ``packed``."""
        with reserved_kept():
            self.decode(packed.numpy())
        columns = ops.ternary_check(packed, self.info.shape[1])
        rows = torch.nonzero(columns >= 0)
        return f" at row {int(rows[0])}, column {int(columns[rows[0]])}" if len(rows) else ""

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return dequantize(self.packed(), dtype or torch.float32)


def _check_room(out: Tensor, rows: int, width: int, where: str) -> None:
    """Raises ValueError where decoders, which see bytes in a row, would write other rows than these."""
    fits = out.dtype == torch.uint8 and out.device.type == "cpu" and tuple(out.shape) == (rows, width)
    if not (fits and out.is_contiguous()):
        dtype = str(out.dtype).removeprefix("torch.")
        raise ValueError(
            f"out for {where} must be ({rows}, {width}) uint8 on the CPU in one piece, got {tuple(out.shape)} {dtype} "
            f"on {out.device} with strides {out.stride()}"
        )


def check_scale(scale: Tensor, where: str, columns: int) -> None:
    """Raises FormatError, with row and columns, for NaN and Inf.

    Args:
        scale: of a tensor of ``columns`` columns: ``[1]``, ``[N]`` or ``[N, G]``.
        where: names tensor and file.
        columns: of the tensor.
    """
    if not bool(torch.isfinite(scale).all()):
        bad = [int(index) for index in torch.nonzero(~torch.isfinite(scale))[0]]
        at = "" if scale.numel() == 1 else f" at row {bad[0]}"
        if len(bad) == 2:
            group = columns // scale.shape[1]
            at += f", columns {bad[1] * group} to {(bad[1] + 1) * group - 1}"
        raise FormatError(
            f"{where} has a scale that is not finite, {float(scale[tuple(bad)])}{at}; the file is damaged"
        )


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """``code * scale``, ``(N, K)``; planes are summed in float32."""
    if weight.depth == 1:
        return ops.ternary_unpack(weight.weight_packed, weight.scale, weight.in_features, dtype)
    n, k = weight.out_features, weight.in_features
    out = torch.empty((n, k), dtype=dtype)
    for begin, end in chunks(n, k):
        total = torch.zeros((end - begin, k))
        for plane in range(weight.depth):
            rows = slice(plane * n + begin, plane * n + end)
            scale = weight.scale if weight.scale.numel() == 1 else weight.scale[rows]
            total += ops.ternary_unpack(weight.weight_packed[rows], scale, k, torch.float32)
        out[begin:end] = total
    return out


def collapse_scale(scale: Floats, blank: Flags) -> Tensor:
    """The smallest scale that says the same: one for the tensor, one per row, or one for as many columns as share it.

    Args:
        scale: ``(N, G)``, of blocks of columns.
        blank: ``(N, G)``, where all codes of the block are 0; writers store any scale there, and none matters.

    Returns:
        float32 ``[1]``, ``[N]`` or ``[N, G / m]``.
    """
    for factor in _prime_factors(scale.shape[1]):
        merged = _merge(scale, blank, factor)
        if merged is not None:
            scale, blank = merged
    if scale.shape[1] > 1:
        return torch.from_numpy(np.ascontiguousarray(scale))
    whole = _merge(scale.T, blank.T, len(scale))
    return torch.from_numpy((scale[:, 0] if whole is None else whole[0][:, 0]).copy())


def _merge(scale: Floats, blank: Flags, count: int) -> tuple[Floats, Flags] | None:
    """Neighbours along the second axis as one, where all of them agree."""
    parts, blanks = scale.reshape(len(scale), -1, count), blank.reshape(len(blank), -1, count)
    # The first that is not blank speaks for all.
    first: Floats = np.take_along_axis(parts, np.argmin(blanks, axis=2)[:, :, None], axis=2)
    if not ((parts == first) | blanks).all():
        return None
    return first[:, :, 0], np.asarray(blanks.all(axis=2))


def _prime_factors(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        while number % factor == 0:
            yield factor
            number //= factor
        factor += 1


def reordered_columns(weight: PackedWeight, order: Tensor) -> PackedWeight:
    """Of one plane: column i is column ``order[i]`` of this one. Groups of columns that share a scale move together.

    Raises:
        ValueError: an order that takes bytes or groups apart.
    """
    rows, columns = weight.out_features, weight.in_features
    run = _run(order)
    if run % 4:
        raise ValueError(f"columns move in runs of {run}, and packed ones move in multiples of 4")
    moved = order[::run] // run
    codes = weight.weight_packed.view(rows, -1, run // 4)[:, moved].flatten(1)
    scale = weight.scale
    if scale.dim() == 2 and scale.shape[1] > 1:
        group = columns // scale.shape[1]
        if group > run:
            scale, group = scale.repeat_interleave(group // math.gcd(group, run), 1), math.gcd(group, run)
        fine = scale.view(rows, -1, run // group)[:, moved].flatten(1)
        scale = collapse_scale(fine.numpy(), np.zeros(fine.shape, bool))
    return PackedWeight(codes, scale, columns)


def _run(order: Tensor) -> int:
    """The columns that stay side by side, the most that cut all of them into equal runs."""
    breaks = torch.nonzero(order[1:] != order[:-1] + 1).flatten() + 1
    return math.gcd(len(order), *breaks.tolist())
