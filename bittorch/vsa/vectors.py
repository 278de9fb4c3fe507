"""Random vectors, and the three operations on them: binding, bundling, permuting."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bittorch import ops
from bittorch.array import TernaryArray, storage, tmul
from bittorch.array.reductions import rows_of

Seed = np.random.Generator | int | None
_ROWS_AT_ONCE = 64  # vectors that a weighted sum unpacks at a time


def vectors_of(name: str, values: Any) -> TernaryArray:
    """``(..., dimension)`` trits of anything that `TernaryArray` takes."""
    vectors = values if isinstance(values, TernaryArray) else TernaryArray(values)
    if vectors.ndim == 0 or vectors.shape[-1] == 0:
        raise ValueError(f"{name} must be (..., dimension) with a dimension of 1 or more, got shape {vectors.shape}")
    return vectors


def rows_of_vectors(name: str, values: Any) -> TernaryArray:
    """``(..., n, dimension)`` trits with an axis of one vector or more."""
    vectors = vectors_of(name, values)
    if vectors.ndim < 2 or vectors.shape[-2] == 0:
        raise ValueError(f"{name} must be (..., n, dimension) with one vector or more, got shape {vectors.shape}")
    return vectors


def check_same_dimension(**vectors: TernaryArray) -> None:
    """ValueError for vectors whose dimensions differ, with their names and both."""
    (first, a), *others = vectors.items()
    for name, b in others:
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"{first} and {name} must have one dimension, got {a.shape[-1]} and {b.shape[-1]} "
                f"(shapes {a.shape} and {b.shape})"
            )


def random(shape: Any, dimension: int, *, zeros: float = 0.0, seed: Seed = None) -> TernaryArray:
    """Random vectors of independent trits: 0 with probability ``zeros``, else -1 or 1 alike.

    Two of them have a cosine of mean 0 and standard deviation ``1 / sqrt(dimension * (1 - zeros))``. A zero of a key
    erases what is bound to it: keys that are to be unbound have none.

    Args:
        shape: how many vectors; an integer, or a tuple, ``()`` for one.
        dimension: trits of a vector.
        zeros: from 0 up to, not including, 1.
        seed: of `numpy.random.default_rng`, or a generator.

    Returns:
        ``(*shape, dimension)``.

    Raises:
        ValueError: a negative size, a dimension below 1, a share out of range.
    """
    sizes, width = storage.as_shape(shape), operator.index(dimension)
    if width < 1:
        raise ValueError(f"dimension must be 1 or more, got {width}")
    if not 0 <= zeros < 1:
        raise ValueError(f"zeros must be a share from 0 up to below 1, got {zeros}")
    generator = np.random.default_rng(seed)
    trits = generator.integers(0, 2, (*sizes, width), np.int8) * np.int8(2) - np.int8(1)
    if zeros:
        trits[generator.random(trits.shape, np.float32) < zeros] = 0
    return TernaryArray(trits)


def bind(*vectors: Any) -> TernaryArray:
    """The product of vectors, trit by trit: like none of them, and as far from another product as they are.

    Args:
        vectors: ``(..., dimension)`` each, one or more; leading axes broadcast.

    Raises:
        ValueError: no vectors, different dimensions, values that are no trits.
    """
    if not vectors:
        raise ValueError("bind needs at least one vector")
    arrays = [vectors_of(f"vector {i}", v) for i, v in enumerate(vectors)]
    check_same_dimension(**{f"vector {i}": a for i, a in enumerate(arrays)})
    return functools.reduce(tmul, arrays[1:], arrays[0].copy())


def unbind(bound: Any, key: Any) -> TernaryArray:
    """What was bound to ``key``: the product with it once more, as ``key * key`` is 1 but where a trit is 0.

    Raises:
        ValueError: different dimensions, values that are no trits.
    """
    arrays = {"bound": vectors_of("bound", bound), "key": vectors_of("key", key)}
    check_same_dimension(**arrays)
    return tmul(*arrays.values())


def permute(vectors: Any, shifts: int = 1) -> TernaryArray:
    """Vectors whose trits are moved round by ``shifts``: ``y[..., (i + shifts) % dimension] = x[..., i]``.

    A vector and its shift are unlike: shifts say where in an order it stands. ``permute(y, -shifts)`` undoes it.
    """
    array = vectors_of("vectors", vectors)
    start = -operator.index(shifts) % array.shape[-1]
    parts: list[Any] = [array[..., start:], array[..., :start]]
    moved: Any = np.concatenate(parts, -1)
    return moved


def superpose(vectors: Any, weights: Any = None) -> NDArray[Any]:
    """The sum of vectors, ``sum_i weights[i] * vectors[..., i, :]``, exact without weights.

    Args:
        vectors: ``(..., n, dimension)``.
        weights: ``(n,)`` numbers, multiplied and added in float64; None is 1 for each.

    Returns:
        ``(..., dimension)``, int64 without weights, else float64.

    Raises:
        ValueError: no vectors, another number of weights, weights that are not finite, values that are no trits.
        TypeError: weights that are no real numbers.
    """
    array: Any = rows_of_vectors("vectors", vectors)
    *batch, n, dimension = array.shape
    if weights is not None:
        return _weighted(array, _checked(weights, n))
    columns = np.moveaxis(array, -2, 0) if batch else array
    width = math.prod(batch) * dimension
    packed = ops.ternary_transpose(rows_of(columns.reshape(n, width), width), width)
    counts = ops.trit_reduce(packed, None, n)
    sums: NDArray[np.int64] = (counts[:, 0] - counts[:, 1]).numpy().reshape(*batch, dimension)
    return sums


def _checked(weights: Any, n: int) -> NDArray[np.float64]:
    given = np.asarray(weights)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"weights must be real numbers, got an array of {given.dtype}")
    if given.shape != (n,):
        raise ValueError(f"weights must be ({n},), one for each vector, got shape {given.shape}")
    storage.refuse(~np.isfinite(given), given, "weights must be finite")
    return given.astype(np.float64)


def _weighted(array: TernaryArray, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros((*array.shape[:-2], array.shape[-1]))
    for begin in range(0, len(weights), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        sums += weights[part] @ array[..., part, :].to_numpy()
    return sums


def bundle(vectors: Any, weights: Any = None) -> TernaryArray:
    """The majority of vectors, ``sign(superpose(vectors, weights))``, like each of them; a tie is 0.

    Args:
        vectors: ``(..., n, dimension)``.
        weights: ``(n,)`` numbers, None is 1 for each. With integers below 2^53 ties are exact; other sums are those of
            float64, in which 0.1 + 0.2 - 0.3 is no tie.

    Raises:
        ValueError: no vectors, another number of weights, weights that are not finite, values that are no trits.
        TypeError: weights that are no real numbers.
    """
    return TernaryArray(np.sign(superpose(vectors, weights)))
