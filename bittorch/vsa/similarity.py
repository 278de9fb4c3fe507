"""How alike vectors are, by counting bits of packed codes: each of one argument with each of the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bittorch import ops
from bittorch.array import TernaryArray, tabs
from bittorch.array.reductions import rows_of
from bittorch.vsa.vectors import check_same_dimension, vectors_of


def pair_of(a: Any, b: Any) -> tuple[TernaryArray, TernaryArray]:
    """Both as vectors of one dimension."""
    left, right = vectors_of("a", a), vectors_of("b", b)
    check_same_dimension(a=left, b=right)
    return left, right


def _products(a: TernaryArray, b: TernaryArray) -> Any:
    """`numpy.inner` of vectors that were checked, in a fifth of the time for two."""
    columns = a.shape[-1]
    y = ops.bitplane_matmul(rows_of(a, columns), rows_of(b, columns), columns).numpy()
    return y.reshape(a.shape[:-1] + b.shape[:-1])[()]


def squares_of(vectors: TernaryArray) -> NDArray[np.int64]:
    """Squared Euclidean lengths, 1 for a vector of zeros, whose products are 0 with any."""
    return np.maximum(np.count_nonzero(vectors, axis=-1), 1)


def dot_similarity(a: Any, b: Any) -> Any:
    """``y[..., j...] = sum_i a[..., i] * b[j..., i]``, exact.

    Args:
        a, b: ``(..., dimension)``.

    Returns:
        int32 of shape ``a.shape[:-1] + b.shape[:-1]``.

    Raises:
        ValueError: different dimensions, values that are no trits.
    """
    return _products(*pair_of(a, b))


def cosine_similarity(a: Any, b: Any) -> Any:
    """`dot_similarity` over the lengths of both, ``sqrt`` of their numbers of trits that are not 0; 0 for a vector of
    zeros. float64.

    Raises:
        ValueError: different dimensions, values that are no trits.
    """
    left, right = pair_of(a, b)
    return _products(left, right) / np.sqrt(np.multiply.outer(squares_of(left), squares_of(right)))


def hamming_similarity(a: Any, b: Any) -> Any:
    """How many trits are equal, zeros included; int64. ``dimension - y`` is the Hamming distance.

    Raises:
        ValueError: different dimensions, values that are no trits.
    """
    left, right = pair_of(a, b)
    both = _products(tabs(left), tabs(right)).astype(np.int64)
    used = np.add.outer(np.count_nonzero(left, axis=-1), np.count_nonzero(right, axis=-1))
    same = (both + _products(left, right)) // 2
    return same + left.shape[-1] - (used - both)
