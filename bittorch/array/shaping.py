"""NumPy's functions that change shapes, give views, or join arrays, for TernaryArrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bittorch.array import storage
from bittorch.array.dispatch import dense, first_argument, implements
from bittorch.array.ternary_array import TernaryArray


def _viewing(function: Callable[..., Any]) -> None:
    """A function that gives a view of its first argument."""

    def own(*args: Any, **kwargs: Any) -> Any:
        a, args, kwargs = first_argument(function, args, kwargs)
        return a._viewed(lambda p: function(p, *args, **kwargs))

    implements(function)(own)


for _function in (
    np.transpose,
    np.swapaxes,
    np.moveaxis,
    np.rollaxis,
    np.expand_dims,
    np.squeeze,
    np.flip,
    np.fliplr,
    np.flipud,
    np.rot90,
    np.diagonal,
    np.broadcast_to,
):
    _viewing(_function)


def _splitting(function: Callable[..., Any]) -> None:
    """A function that gives a list of views of its first argument."""

    def own(*args: Any, **kwargs: Any) -> Any:
        a, args, kwargs = first_argument(function, args, kwargs)
        args, kwargs = dense(args), dense(kwargs)
        if not isinstance(a, TernaryArray):
            return function(a, *args, **kwargs)
        return a._views(lambda p: function(p, *args, **kwargs))

    implements(function)(own)


for _split in (np.split, np.array_split, np.hsplit, np.vsplit, np.dsplit):
    _splitting(_split)


@implements(np.reshape)
def reshape(a: TernaryArray, shape: Any, order: str = "C") -> TernaryArray:
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', got {order!r}")
    return a.reshape(shape) if order == "C" else a.T.reshape(storage.sizes(shape)[::-1]).T


@implements(np.ravel)
def ravel(a: TernaryArray, order: str = "C") -> TernaryArray:
    return reshape(a, -1, order)


@implements(np.copy)
def copy(a: TernaryArray, order: str = "K", subok: bool = False) -> TernaryArray:
    return a.copy()


@implements(np.shape)
def shape(a: TernaryArray) -> tuple[int, ...]:
    return a.shape


@implements(np.ndim)
def ndim(a: TernaryArray) -> int:
    return a.ndim


@implements(np.size)
def size(a: TernaryArray, axis: Any = None) -> int:
    return a.size if axis is None else np.size(np.broadcast_to(np.int8(0), a.shape), axis)


@implements(np.concatenate)
def concatenate(arrays: Sequence[Any], axis: int | None = 0, **kwargs: Any) -> Any:
    """`numpy.concatenate`: packed where all arrays are TernaryArrays, else dense."""
    if kwargs or not all(isinstance(a, TernaryArray) for a in arrays):
        return np.concatenate([dense(a) for a in arrays], axis, **kwargs)
    whole = all(a.size % 4 == 0 for a in arrays[:-1])
    joint = axis == 0 and arrays[0].ndim > 0 and len({a.shape[1:] for a in arrays}) == 1
    if whole and joint:
        data = np.concatenate([a.to_packed().numpy() for a in arrays])
        return TernaryArray._of(data, (sum(len(a) for a in arrays), *arrays[0].shape[1:]))
    joined = np.concatenate([a.to_numpy() for a in arrays], axis)
    return TernaryArray._of(storage.pack(joined), joined.shape)


@implements(np.stack)
def stack(arrays: Sequence[Any], axis: int = 0, **kwargs: Any) -> Any:
    """`numpy.stack`: packed where all arrays are TernaryArrays, else dense."""
    if kwargs or not all(isinstance(a, TernaryArray) for a in arrays):
        return np.stack([dense(a) for a in arrays], axis, **kwargs)
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"all input arrays must have the same shape, got {[a.shape for a in arrays]}")
    return concatenate([np.expand_dims(a, axis) for a in arrays], axis)


@implements(np.where)
def where(condition: Any, *values: Any) -> Any:
    """`numpy.where`: packed where both values are TernaryArrays or trits and one is a TernaryArray, else dense."""
    result = np.where(dense(condition), *(dense(v) for v in values))
    trits = all(isinstance(v, TernaryArray) or (isinstance(v, int) and -1 <= v <= 1) for v in values)
    return TernaryArray(result) if trits and any(isinstance(v, TernaryArray) for v in values) else result


@implements(np.array_equal)
def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    if isinstance(a1, TernaryArray) and isinstance(a2, TernaryArray):
        return a1.shape == a2.shape and bool(np.array_equal(a1.to_packed().numpy(), a2.to_packed().numpy()))
    return bool(np.array_equal(dense(a1), dense(a2), equal_nan))


def _sharing(function: Callable[..., Any]) -> None:
    """Whether memory is shared: of a TernaryArray that is from the byte of its first trit to that of its last."""

    def own(a: Any, b: Any, *args: Any, **kwargs: Any) -> bool:
        return bool(function(*(v._memory() if isinstance(v, TernaryArray) else v for v in (a, b)), *args, **kwargs))

    implements(function)(own)


_sharing(np.shares_memory)
_sharing(np.may_share_memory)
