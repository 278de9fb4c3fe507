"""Reductions of TernaryArrays: all from the counts of 1 and of -1, which are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bittorch import ops
from bittorch.array import storage
from bittorch.array.dispatch import call_dense, implements, store
from bittorch.array.ternary_array import TernaryArray

_Counts = NDArray[np.int64]


def rows_of(array: TernaryArray, columns: int) -> torch.Tensor:
    """(rows, ceil(columns / 4)) uint8: trits in C order, each row from a byte on."""
    rows = array.size // columns if columns else math.prod(array.shape[:-1])
    if array.size == 0:
        return torch.empty(rows, storage.byte_count(columns), dtype=torch.uint8)
    if columns % 4 == 0 or rows == 1:
        return storage.rows_of(array._stream(), rows)
    return ops.ternary_pack(array.to_torch().reshape(rows, columns), False)


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    if ndim == 0 and axis in (0, -1):  # as NumPy has it
        return ()
    for a in given:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim)
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) != len(axes):
        raise ValueError(f"duplicate value in 'axis': {axis}")
    return axes


def _counts(a: TernaryArray, axis: Any, keepdims: bool) -> tuple[_Counts, _Counts, int]:
    """How many are 1 and how many are -1 along the axes, and of how many."""
    axes = _axes(axis, a.ndim)
    kept = [d for d in range(a.ndim) if d not in axes]
    count = math.prod(a.shape[d] for d in axes)
    shape = tuple(1 if d in axes else a.shape[d] for d in range(a.ndim) if keepdims or d not in axes)
    if math.prod(shape) * count == 0:
        return np.zeros(shape, np.int64), np.zeros(shape, np.int64), count
    order = kept + sorted(axes)
    ordered = a if order == list(range(a.ndim)) else a.transpose(order)
    counts = ops.trit_reduce(rows_of(ordered, count), None, count).numpy()
    return counts[:, 0].reshape(shape), counts[:, 1].reshape(shape), count


def _done(result: Any, dtype: Any, out: Any) -> Any:
    result = np.asarray(result)
    result = result if dtype is None else result.astype(dtype)
    return result[()] if out is None else store(result, out)


def _is_number(dtype: Any) -> bool:
    return dtype is None or np.dtype(dtype).kind in "iufc"


def _reduction(compute: Callable[[_Counts, _Counts, int], Any], _numpy: Callable[..., Any]) -> None:
    """``compute`` of the counts, in place of NumPy's function, which keeps ``where``, ``initial`` and sums in bool."""

    def own(
        a: Any,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: Any = False,
        **others: Any,
    ) -> Any:
        others = {k: v for k, v in others.items() if v is not np._NoValue}
        kept = keepdims is not np._NoValue and bool(keepdims)
        if others or not isinstance(a, TernaryArray) or not _is_number(dtype):
            named = {"axis": axis, "out": out, "keepdims": kept} | ({} if dtype is None else {"dtype": dtype}) | others
            return call_dense(_numpy, (a,), named)
        return _done(compute(*_counts(a, axis, kept)), dtype, out)

    implements(_numpy)(own)


def _prod(plus: _Counts, minus: _Counts, count: int) -> NDArray[np.int64]:
    return np.where(plus + minus < count, 0, 1 - 2 * (minus % 2))


def _mean(plus: _Counts, minus: _Counts, count: int) -> Any:
    return np.true_divide(plus - minus, count)


def _extreme(own: _Counts, other: _Counts, count: int, sign: int) -> Any:
    if count == 0:
        raise ValueError("zero-size array to reduction operation minimum or maximum which has no identity")
    return (sign * np.where(own > 0, 1, np.where(other < count, 0, -1))).astype(np.int8)


_reduction(lambda plus, minus, count: plus - minus, np.sum)
_reduction(_prod, np.prod)
_reduction(_mean, np.mean)
_reduction(lambda plus, minus, count: _extreme(minus, plus, count, -1), np.min)
_reduction(lambda plus, minus, count: _extreme(plus, minus, count, 1), np.max)
_reduction(lambda plus, minus, count: plus + minus > 0, np.any)
_reduction(lambda plus, minus, count: plus + minus == count, np.all)
_reduction(lambda plus, minus, count: plus + minus, np.count_nonzero)


def trit_counts(a: TernaryArray, axis: Any = None, keepdims: bool = False) -> tuple[Any, Any, Any]:
    """How many trits are -1, how many 0 and how many 1, int64, along an axis, some, or all."""
    plus, minus, count = _counts(a, axis, keepdims)
    return minus[()], (count - plus - minus)[()], plus[()]
