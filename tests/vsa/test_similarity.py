from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bittorch import vsa
from tests.array.arrays import few, shifted, trits


@few
@given(st.integers(1, 70).flatmap(lambda d: st.tuples(trits((d,)) | trits((3, d)), trits((2, 2, d)) | trits((d,)))))
def test_similarities_are_those_of_dense_arrays(pair: Any) -> None:
    a, b = (values.astype(np.int64) for values in pair)
    left, right = (shifted(values) for values in pair)
    np.testing.assert_array_equal(vsa.dot_similarity(left, right), np.tensordot(a, b, (-1, -1)))
    lengths = np.multiply.outer(np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1))
    expected = np.divide(np.tensordot(a, b, (-1, -1)), lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    np.testing.assert_allclose(vsa.cosine_similarity(left, right), expected, rtol=1e-12, atol=0)
    equal = (a.reshape(*a.shape[:-1], *(1,) * (b.ndim - 1), a.shape[-1]) == b).sum(-1)
    np.testing.assert_array_equal(vsa.hamming_similarity(left, right), equal)
    assert np.shape(vsa.hamming_similarity(left, right)) == a.shape[:-1] + b.shape[:-1]


def test_other_dimensions_and_values_are_refused() -> None:
    for function in (vsa.dot_similarity, vsa.cosine_similarity, vsa.hamming_similarity):
        with pytest.raises(ValueError, match=r"a and b must have one dimension, got 2 and 3"):
            function([1, 1], [1, 1, 0])
        with pytest.raises(ValueError, match=r"got 3 at index \(0, 1\)"):
            function([[1, 3]], [1, 1])
