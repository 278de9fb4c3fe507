"""Functions of each trit: the ufuncs of two TernaryArrays, and the names of ternary logic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bittorch import ops
from bittorch.array import storage
from bittorch.array.dispatch import implements
from bittorch.array.ternary_array import TernaryArray


def _rows(array: TernaryArray, rows: int) -> Tensor:
    """The stream of an array as rows of whole bytes."""
    return storage.rows_of(array._stream(), rows)


def _operands(a: TernaryArray, b: TernaryArray) -> tuple[Tensor, Tensor, int, tuple[int, ...]]:
    """Both as rows that the op takes, trits of a row, and the shape of the result.

    One that repeats along leading axes, and fills whole bytes, is one row for all; others are broadcast by copying.
    """
    if a.shape == b.shape:
        return _rows(a, 1), _rows(b, 1), a.size, a.shape
    shape = np.broadcast_shapes(a.shape, b.shape)
    size = math.prod(shape)
    small, large = (a, b) if a.size <= b.size else (b, a)
    period = small.size
    tail = storage.without_leading_ones(small.shape, small.ndim)
    repeats = tail == shape[len(shape) - len(tail) :]
    if large.shape == shape and repeats and period % 4 == 0 and 0 < period < size:
        rows = {id(small): _rows(small, 1), id(large): _rows(large, size // period)}
        return rows[id(a)], rows[id(b)], period, shape
    wide = [x if x.shape == shape else x._viewed(lambda p: np.broadcast_to(p, shape)) for x in (a, b)]
    return _rows(wide[0], 1), _rows(wide[1], 1), size, shape


def _apply(function: str, a: TernaryArray, b: TernaryArray | None = None) -> TernaryArray:
    left, right, columns, shape = (_rows(a, 1), None, a.size, a.shape) if b is None else _operands(a, b)
    return TernaryArray._of(ops.trit_elementwise(left, right, function, columns).numpy().reshape(-1), shape)


def _as_array(value: Any) -> TernaryArray:
    return value if isinstance(value, TernaryArray) else TernaryArray(value)


def _of_one(function: str, text: str) -> Callable[[Any], TernaryArray]:
    def own(a: Any) -> TernaryArray:
        return _apply(function, _as_array(a))

    own.__doc__ = f"{text}, as a TernaryArray; ``a`` may be anything that `TernaryArray` takes."
    return own


def _of_two(function: str, text: str) -> Callable[[Any, Any], TernaryArray]:
    def own(a: Any, b: Any) -> TernaryArray:
        return _apply(function, _as_array(a), _as_array(b))

    own.__doc__ = f"{text}, as a TernaryArray; ``a`` and ``b`` may be anything that `TernaryArray` takes."
    return own


tnot = _of_one("neg", "``-a``, Kleene's not")
tabs = _of_one("abs", "``|a|``")
tadd = _of_two("add", "``a + b``, saturated")
tsub = _of_two("sub", "``a - b``, saturated")
tmul = _of_two("mul", "``a * b``")
tmin = _of_two("min", "The smaller of both")
tmax = _of_two("max", "The larger of both")
tand = _of_two("min", "Kleene's and: the smaller of both")
tor = _of_two("max", "Kleene's or: the larger of both")
tconsensus = _of_two("consensus", "``a`` where both are equal, else 0")
teq = _of_two("eq", "1 where ``a == b``, else 0")
tne = _of_two("ne", "1 where ``a != b``, else 0")
tlt = _of_two("lt", "1 where ``a < b``, else 0")
tle = _of_two("le", "1 where ``a <= b``, else 0")
tgt = _of_two("gt", "1 where ``a > b``, else 0")
tge = _of_two("ge", "1 where ``a >= b``, else 0")

implements(np.negative, np.invert)(tnot)
implements(np.absolute)(tabs)
implements(np.sign, np.positive)(lambda a: a.copy())
implements(np.add)(tadd)
implements(np.subtract)(tsub)
implements(np.multiply)(tmul)
implements(np.minimum, np.bitwise_and)(tmin)
implements(np.maximum, np.bitwise_or)(tmax)


def _comparison(function: Callable[[Any, Any], TernaryArray]) -> Callable[[Any, Any], NDArray[np.bool_]]:
    return lambda a, b: function(a, b).to_numpy().view(np.bool_)


for _ufunc, _function in {
    np.equal: teq,
    np.not_equal: tne,
    np.less: tlt,
    np.less_equal: tle,
    np.greater: tgt,
    np.greater_equal: tge,
}.items():
    implements(_ufunc)(_comparison(_function))


@implements(np.bitwise_xor)
def _xor(a: Any, b: Any) -> TernaryArray:
    raise TypeError("trits have no exclusive or; take tne(a, b), or numpy.bitwise_xor of dense arrays")


def from_biased(values: Any) -> TernaryArray:
    """Trits of an array of 0, 1 and 2 for -1, 0 and 1, one per byte."""
    biased = np.asarray(values)
    if biased.dtype.kind not in "ui":
        raise TypeError(f"biased trits must be integers, got {biased.dtype}")
    storage.refuse((biased < 0) | (biased > 2), biased, "biased trits must be 0, 1 or 2")
    return TernaryArray(biased.astype(np.int8) - np.int8(1))


def to_biased(array: TernaryArray) -> NDArray[np.uint8]:
    """0, 1 and 2 for -1, 0 and 1, one per byte."""
    return (array.to_numpy() + 1).astype(np.uint8)
