"""Trits in a flat stream of bytes, four per byte: reading, writing and moving them as numbers or as codes.

Trit i is code ``data[i // 4] >> 2 * (i % 4) & 3``, as in `bittorch.ops.ternary_pack`; what is behind the last is 00.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bittorch import ops

Bytes = NDArray[np.uint8]
Trits = NDArray[np.int8]
Shape = tuple[int, ...]
_SPARSE = 16  # a view of fewer trits than its span over this is read and written one by one


def c_strides(shape: Shape) -> Shape:
    """Trits from an element to the next of each axis, in C order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def sizes(shape: Any) -> Shape:
    """The integers of what NumPy takes for a shape: one, or some."""
    try:
        return (operator.index(shape),)
    except TypeError:  # also of an array of sizes, which has __index__
        return tuple(operator.index(n) for n in shape)


def as_shape(shape: Any) -> Shape:
    """Sizes of what NumPy takes for a shape; ValueError where one is negative."""
    given = sizes(shape)
    if any(n < 0 for n in given):
        raise ValueError(f"sizes must not be negative, got {given}")
    return given


def byte_count(trits: int) -> int:
    return (trits + 3) // 4


def index_of(flat: int, shape: Shape) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def without_leading_ones(shape: Shape, most: int) -> Shape:
    """The shape without up to so many axes of size 1 ahead of all others."""
    ones = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[min(ones, max(most, 0)) :]


def refuse(bad: NDArray[np.bool_], values: NDArray[Any], wanted: str) -> None:
    """ValueError with index and value of the first that is bad."""
    if bad.any():
        at = index_of(int(np.argmax(bad)), values.shape)
        raise ValueError(f"{wanted}, got {values[at]} at index {at}")


def to_trits(values: Any) -> Trits:
    """Numbers as int8; ValueError with index and value of the first that is none of -1, 0 and 1."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"trits must be numbers, got an array of {array.dtype}")
    if array.dtype.kind != "b":
        refuse(~((array == 0) | (array == 1) | (array == -1)), array, "trits must be -1, 0 or 1")
    return array.astype(np.int8)


def pack(trits: Trits) -> Bytes:
    """The stream of trits that are -1, 0 or 1, in C order."""
    flat = torch.from_numpy(np.ascontiguousarray(trits).reshape(1, -1))
    packed: Bytes = ops.ternary_pack(flat, False).numpy()[0]
    return packed


def unpack(data: Bytes, begin: int, count: int) -> Trits:
    """Trits [begin, begin + count) of a stream."""
    first = begin // 4
    skip = begin - 4 * first
    part = data[first : byte_count(begin + count)]
    trits: Trits = ops.ternary_unpack(rows_of(part), None, 4 * len(part), torch.int8).numpy()[0]
    return trits[skip : skip + count]


def rows_of(data: Bytes, rows: int = 1) -> Tensor:
    """The stream as a matrix for the ops, without a copy."""
    return torch.from_numpy(data).view(rows, len(data) // rows)


def moved(data: Bytes, begin: int, count: int) -> Bytes:
    """The stream of trits [begin, begin + count): the bytes themselves where these begin at one, else a copy."""
    first, shift = begin // 4, 2 * (begin % 4)
    part = data[first : byte_count(begin + count)]
    if shift == 0:
        return part
    copy: Bytes = np.right_shift(part, shift, dtype=np.uint8)
    copy[:-1] |= part[1:] << (8 - shift)
    return copy[: byte_count(count)]


def span(offset: int, shape: Shape, strides: Shape) -> tuple[int, int]:
    """The first trit of a view that is not empty, and the one behind its last."""
    reach = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    return offset + sum(r for r in reach if r < 0), offset + sum(r for r in reach if r > 0) + 1


def _positions(offset: int, shape: Shape, strides: Shape) -> NDArray[np.int64]:
    at = np.full((1,) * len(shape), offset, dtype=np.int64)
    for axis, (size, step) in enumerate(zip(shape, strides, strict=True)):
        line = np.arange(size, dtype=np.int64) * step
        at = at + line.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return at


def gather(data: Bytes, offset: int, shape: Shape, strides: Shape) -> Trits:
    """The trits of a view, whose strides are trits."""
    if 0 in shape:
        return np.empty(shape, np.int8)
    begin, end = span(offset, shape, strides)
    if end - begin > _SPARSE * math.prod(shape):
        at = _positions(offset, shape, strides)
        codes = data[at >> 2] >> (2 * (at & 3)).astype(np.uint8) & np.uint8(3)
        return ((codes & 1).astype(np.int8) - (codes >> 1).astype(np.int8)).reshape(shape)
    flat = unpack(data, begin, end - begin)
    return np.lib.stride_tricks.as_strided(flat[offset - begin :], shape, strides).copy()


def scatter(data: Bytes, offset: int, shape: Shape, strides: Shape, trits: Trits) -> None:
    """Writes trits of its shape to a view."""
    if 0 in shape:
        return
    begin, end = span(offset, shape, strides)
    if end - begin > _SPARSE * math.prod(shape):
        at = _positions(offset, shape, strides).ravel()
        values = trits.ravel()
        codes = (values & 1).astype(np.uint8) << (values < 0).astype(np.uint8)
        shifts = (2 * (at & 3)).astype(np.uint8)
        np.bitwise_and.at(data, at >> 2, ~(np.uint8(3) << shifts))
        np.bitwise_or.at(data, at >> 2, codes << shifts)
        return
    first, last = begin // 4, byte_count(end)
    flat = unpack(data, 4 * first, 4 * (last - first))
    np.lib.stride_tricks.as_strided(flat[offset - 4 * first :], shape, strides)[...] = trits
    data[first:last] = pack(flat)
