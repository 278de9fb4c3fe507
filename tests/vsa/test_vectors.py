from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bittorch import vsa
from bittorch.array import TernaryArray
from tests.array.arrays import assert_same, few, shifted, trits
from tests.helpers import each

stacks = st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 19)).map(lambda s: s if s[0] else s[1:])


@few
@given(stacks.flatmap(trits), st.data())
def test_operations_are_those_of_dense_arrays(values: Any, data: Any) -> None:
    a = shifted(values)
    n = values.shape[-2]
    by = data.draw(st.integers(-30, 30))
    assert_same(vsa.permute(a, by), np.roll(values, by, -1))
    assert_same(vsa.permute(vsa.permute(a, by), -by), values)
    first = values[..., :1, :]
    assert_same(vsa.bind(a, first, a), values * first * values)
    assert_same(vsa.unbind(a, values), values * values)
    sums = values.sum(-2, dtype=np.int64)
    assert_same(vsa.superpose(a), sums)
    assert_same(vsa.bundle(a), np.sign(sums))
    weights = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n)))
    expected = np.einsum("i,...ij->...j", weights, values.astype(np.int64))
    assert_same(vsa.superpose(a, weights), expected.astype(np.float64))
    assert_same(vsa.bundle(a, weights), np.sign(expected))


def test_more_vectors_than_a_weighted_sum_unpacks_at_a_time() -> None:
    vectors, weights = vsa.random(150, 33, seed=0), np.linspace(-1, 1, 150)
    np.testing.assert_allclose(vsa.superpose(vectors, weights), weights @ vectors.to_numpy(), rtol=1e-12, atol=1e-12)


def test_results_share_no_memory_with_arguments() -> None:
    a = vsa.random(2, 8, seed=0)
    for result in (vsa.bind(a), vsa.permute(a, 8), vsa.bundle(a[:1])):
        before = a.to_numpy()
        result[...] = 0
        assert_same(a, before)


def test_random_vectors_are_as_they_say() -> None:
    dense, sparse = vsa.random((2, 3), 10_000, seed=1), vsa.random(4, 10_000, zeros=0.25, seed=1)
    assert dense.shape == (2, 3, 10_000)
    assert np.count_nonzero(dense) == dense.size
    assert abs(dense.mean()) < 0.02  # 5 deviations
    assert abs(1 - np.count_nonzero(sparse) / sparse.size - 0.25) < 0.011
    assert abs(sparse.mean()) < 0.022
    cosines = vsa.cosine_similarity(sparse, sparse)[np.triu_indices(4, 1)]
    assert abs(cosines).max() < 5 / np.sqrt(7_500)
    assert_same(vsa.random((), 50, seed=7), vsa.random((), 50, seed=np.random.default_rng(7)))
    assert vsa.random(0, 5).shape == (0, 5)


V = TernaryArray([[1, 0, -1], [1, 1, 1]])


@each(
    ("call", "error", "message"),
    [
        (lambda: vsa.random(2, 0), ValueError, "dimension must be 1 or more, got 0"),
        (lambda: vsa.random(-2, 3), ValueError, "sizes must not be negative"),
        (lambda: vsa.random(2, 3, zeros=1.0), ValueError, "from 0 up to below 1, got 1.0"),
        (lambda: vsa.random(2, 3, zeros=float("nan")), ValueError, "got nan"),
        (lambda: vsa.random(2, 2.5), TypeError, "integer"),
        (lambda: vsa.bind(), ValueError, "at least one vector"),
        (lambda: vsa.bind(V, [1, 0]), ValueError, "vector 0 and vector 1 must have one dimension, got 3 and 2"),
        (lambda: vsa.bind(V, [1]), ValueError, "got 3 and 1"),
        (lambda: vsa.bind(V, [1, 2, 0]), ValueError, r"got 2 at index \(1,\)"),
        (lambda: vsa.unbind(V, [[1, 1]]), ValueError, "bound and key must have one dimension, got 3 and 2"),
        (lambda: vsa.permute(1), ValueError, r"got shape \(\)"),
        (lambda: vsa.permute(V, 0.5), TypeError, "integer"),
        (lambda: vsa.bundle(V[0]), ValueError, r"one vector or more, got shape \(3,\)"),
        (lambda: vsa.bundle(V[:0]), ValueError, r"one vector or more, got shape \(0, 3\)"),
        (lambda: vsa.bundle(np.zeros((2, 0))), ValueError, r"dimension of 1 or more, got shape \(2, 0\)"),
        (lambda: vsa.bundle(V, [1.0]), ValueError, r"weights must be \(2,\), .* got shape \(1,\)"),
        (lambda: vsa.bundle(V, [1.0, np.nan]), ValueError, r"finite, got nan at index \(1,\)"),
        (lambda: vsa.bundle(V, ["a", "b"]), TypeError, "real numbers"),
    ],
    ids=lambda case: str(case[2]),
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
