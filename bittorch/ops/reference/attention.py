"""Attention to a cache, and its writing, in plain torch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def _sequences(
    lengths: Sequence[int], rows: Sequence[int] | None, counts: Sequence[int] | None
) -> Iterator[tuple[int, int, int]]:
    """Length, row of the cache and new tokens of each sequence."""
    rows = range(len(lengths)) if rows is None else rows
    counts = [1] * len(lengths) if counts is None else counts
    return zip(lengths, rows, counts, strict=True)


def decode_attention(
    q: Tensor,
    kv: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    window: int = 0,
    scale: float | None = None,
) -> Tensor:
    scale = q.shape[2] ** -0.5 if scale is None else scale
    y, queries = torch.zeros_like(q), iter(range(len(q)))
    for length, row, count in _sequences(lengths, rows, counts):
        for position in range(length - count, length):
            i, first = next(queries), max(0, position - window) if window else 0
            k, v = kv[:, row, :, first : position + 1].double().repeat_interleave(q.shape[1] // kv.shape[2], 1)
            scores = (k @ q[i].double()[:, :, None])[..., 0] * scale
            y[i] = (torch._safe_softmax(scores, -1)[:, None] @ v)[:, 0].to(q.dtype)
    return y


def rotary_store(
    heads: Tensor,
    kv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> None:
    if cos is not None and sin is not None:
        turned = heads[:, : heads.shape[1] - kv.shape[2], : cos.shape[1]]
        swapped = turned.double().roll(cos.shape[1] // 2, 2)
        turned.copy_(turned.double() * cos[:, None] + swapped * sin[:, None])
    new = heads[:, -2 * kv.shape[2] :].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
    end = 0
    for length, row, count in _sequences(lengths, rows, counts):
        end += count
        kv[:, row, :, length - count : length] = new[:, :, end - count : end]
