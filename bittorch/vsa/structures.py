"""Records and sequences: what is bundled of vectors that were bound or permuted first."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from bittorch.array import TernaryArray
from bittorch.vsa.vectors import bind, bundle, permute, rows_of_vectors


def record(keys: Any, values: Any, weights: Any = None) -> TernaryArray:
    """``bundle(bind(keys, values))``; ``unbind(record, key)`` is like the value of that key.

    A record may be a value of another: unbind by the keys from the outside in, and clean up at the end.

    Args:
        keys, values: ``(..., n, dimension)``; leading axes broadcast.
        weights: as in `bundle`.

    Raises:
        ValueError: no pairs, another number of values than of keys, different dimensions, bad weights.
    """
    left, right = rows_of_vectors("keys", keys), rows_of_vectors("values", values)
    if left.shape[-2] != right.shape[-2]:
        raise ValueError(f"there must be a value for each key, got {left.shape[-2]} keys and {right.shape[-2]} values")
    return bundle(bind(left, right), weights)


def _placed(vectors: Any) -> TernaryArray:
    array = rows_of_vectors("vectors", vectors)
    parts: list[Any] = [permute(array[..., i, :], i) for i in range(array.shape[-2])]
    placed: Any = np.stack(parts, axis=-2)
    return placed


def sequence(vectors: Any, weights: Any = None) -> TernaryArray:
    """``bundle`` of vectors in order, number ``i`` permuted by ``i``; ``permute(y, -i)`` is like the one at ``i``.

    Args:
        vectors: ``(..., n, dimension)``.
        weights: as in `bundle`.
    """
    return bundle(_placed(vectors), weights)


def bind_sequence(vectors: Any) -> TernaryArray:
    """The product of vectors in order, number ``i`` permuted by ``i``: one symbol for all of them in this order.

    Args:
        vectors: ``(..., n, dimension)``.
    """
    placed = _placed(vectors)
    return bind(*(placed[..., i, :] for i in range(placed.shape[-2])))


def ngrams(vectors: Any, n: int = 3) -> TernaryArray:
    """``bundle`` of `bind_sequence` of every ``n`` vectors that follow one another: what a text is like.

    Args:
        vectors: ``(..., length, dimension)``, of the symbols of a text in order.
        n: from 1 to ``length``.

    Raises:
        ValueError: an ``n`` out of range.
    """
    array, size = rows_of_vectors("vectors", vectors), operator.index(n)
    length = array.shape[-2]
    if not 1 <= size <= length:
        raise ValueError(f"n must be from 1 to the {length} vectors, got {size}")
    shifted = [permute(array[..., i : length - size + 1 + i, :], i) for i in range(size)]
    return bundle(bind(*shifted))
