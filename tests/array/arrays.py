"""Random arrays with their dense twins, and the comparison that all tests make."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bittorch.array import TernaryArray

few = settings(max_examples=25, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def trits(shape: Any = shapes) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.int8, shape, elements=st.integers(-1, 1))


def assert_same(actual: Any, expected: Any) -> None:
    """The same shape, and for NumPy's own results the same type of number, too."""
    assert np.shape(actual) == np.shape(expected)
    if not isinstance(actual, TernaryArray):
        assert np.asarray(actual).dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(np.asarray(actual), expected)


def shifted(values: Any) -> TernaryArray:
    """The same trits in a view that begins inside a byte, among others."""
    around = TernaryArray(np.concatenate([[1], values.ravel(), [-1, 1]]).astype(np.int8))
    return around[1 : 1 + values.size].reshape(values.shape)
