"""Ternary tensors in files: what all formats share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io.checkpoint import PackedWeight, StoredTensor
from bittorch.models.io.codecs import Bytes, ReservedCode
from bittorch.models.io.errors import FormatError

CHUNK = 1 << 20  # weights decoded at a time: what fits the second-level cache together with its temporaries


def chunks(count: int, weights_each: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover ``count`` items of ``weights_each`` weights, about `CHUNK` weights in each."""
    step = max(1, CHUNK // max(1, weights_each))
    return ((begin, min(begin + step, count)) for begin in range(0, count, step))


class TernaryTensor(StoredTensor):
    """Decodes to canonical bytes and a scale; readers say how."""

    depth = 1

    def decode(self, out: Bytes) -> Tensor:
        """Fills canonical ``(rows, ceil(columns / 4))`` bytes and returns the scale. Raises ReservedCode."""
        raise NotImplementedError

    def packed(self) -> PackedWeight:
        rows, columns = self.info.shape
        packed = torch.empty((self.depth * rows, (columns + 3) // 4), dtype=torch.uint8)
        try:
            scale = self.decode(packed.numpy())
        except ReservedCode as error:
            raise FormatError(f"{self.info.name} ({self.info.type}) holds {error}; the file is damaged") from None
        check_scale(scale, self.info.name)
        return PackedWeight(packed, scale, columns, self.depth)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return dequantize(self.packed(), dtype or torch.float32)


def check_scale(scale: Tensor, name: str) -> None:
    """Raises FormatError for NaN and Inf."""
    if not bool(torch.isfinite(scale).all()):
        raise FormatError(f"{name} has a scale that is not finite; the file is damaged")


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


def collapse_scale(scale: np.ndarray[Any, np.dtype[np.float32]], blank: np.ndarray[Any, Any]) -> Tensor:
    """The smallest scale that says the same: one per tensor, per row, or per block as given.

    Args:
        scale: ``(N, G)``.
        blank: ``(N, G)`` bool, blocks whose codes are all 0; writers store any scale with them, and none matters.

    Returns:
        float32 ``[1]``, ``[N]`` or ``[N, G]``.
    """
    used = ~blank
    first = np.argmax(used, axis=1)
    rows = np.where(used.any(axis=1), scale[np.arange(len(scale)), first], 0)
    if ((scale == rows[:, None]) | blank).all():
        some = rows[used.any(axis=1)]
        if len(some) == 0 or (some == some[0]).all():
            return torch.from_numpy(some[:1].copy() if len(some) else np.zeros(1, np.float32))
        return torch.from_numpy(rows.astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(scale))
