"""NumPy's functions that change shapes, give views, or join arrays, for TernaryArrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bittorch.array.ternary_array import TernaryArray, dense, implements


def _viewing(function: Callable[..., Any]) -> None:
    """A function that gives a view of its first argument."""
    implements(function)(lambda a, *args, **kwargs: a.view(lambda p: function(p, *args, **kwargs)))


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

    def own(a: TernaryArray, indices_or_sections: Any, axis: int = 0) -> list[TernaryArray]:
        sizes: list[int] = []

        def look(p: Any) -> Any:
            sizes.extend(part.shape[axis] for part in function(p, indices_or_sections, axis))
            return p

        a.view(look)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        whole = (slice(None),) * (axis % a.ndim)
        return [a[(*whole, slice(end - n, end))] for n, end in zip(sizes, ends, strict=True)]

    implements(function)(own)


_splitting(np.split)
_splitting(np.array_split)


@implements(np.reshape)
def reshape(a: TernaryArray, shape: Any, **kwargs: Any) -> TernaryArray:
    return a.reshape(shape, **kwargs)


@implements(np.ravel)
def ravel(a: TernaryArray) -> TernaryArray:
    return a.ravel()


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
def size(a: TernaryArray, axis: int | None = None) -> int:
    return a.size if axis is None else a.shape[axis]


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
    return TernaryArray(np.concatenate([a.to_numpy() for a in arrays], axis))


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
def array_equal(a: Any, b: Any, equal_nan: bool = False) -> bool:
    if isinstance(a, TernaryArray) and isinstance(b, TernaryArray):
        return a.shape == b.shape and bool(np.array_equal(a.to_packed().numpy(), b.to_packed().numpy()))
    return bool(np.array_equal(dense(a), dense(b), equal_nan))
