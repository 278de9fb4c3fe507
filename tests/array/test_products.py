import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bittorch.array import TernaryArray
from tests.array.arrays import assert_same, few, shifted, trits


@few
@given(st.data())
def test_matmul_is_exact(data: Any) -> None:
    given_shapes = data.draw(hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=6))
    a, b = (data.draw(trits(shape)) for shape in given_shapes.input_shapes)
    expected = np.matmul(a.astype(np.int32), b.astype(np.int32))
    assert_same(shifted(a) @ TernaryArray(b), expected)
    assert_same(np.matmul(TernaryArray(a), shifted(b)), expected)


def test_long_sums_do_not_wrap_as_int8_does() -> None:
    a = TernaryArray.full((3, 1000), 1)
    assert_same(a @ -a.T, np.full((3, 3), -1000, np.int32))
    assert_same(np.vdot(a, a), np.int32(3000))
    assert_same(np.einsum("ij,kj->ik", a, a), np.full((3, 3), 1000, np.int32))
    assert np.convolve(a[0], a[0]).max() == 1000
    assert np.correlate(a[0], a[0]).tolist() == [1000]
    assert np.matmul(a, a, axes=[(0, 1), (1, 0), (0, 1)]).tolist() == [[1000] * 3] * 3
    assert np.linalg.multi_dot([a, a.T, a]).max() == 3000
    assert np.linalg.matrix_power(TernaryArray.full((100, 100), 1), 6).max() == 100**5
    for name in ("vecdot", "linalg.vecdot", "matvec", "linalg.matmul"):  # of NumPy 2
        function = operator.attrgetter(name)(np) if np.lib.NumpyVersion(np.__version__) >= "2.2.0" else None
        if function is not None:
            assert np.max(function(a, a.T if name == "linalg.matmul" else a[0])) == 1000, name


def test_products_of_nothing() -> None:
    for a, b in (((0, 4), (4, 0)), ((2, 0), (0, 3)), ((0, 3), (3, 2)), ((2, 5), (5, 0))):
        expected = np.zeros(a, np.int32) @ np.zeros(b, np.int32)
        assert_same(TernaryArray.zeros(a) @ TernaryArray.zeros(b), expected)
    assert_same(np.inner(TernaryArray(1), TernaryArray([-1])), np.array([-1], np.int32))


def test_dot_inner_and_tensordot() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1, 2, (3, 4, 5), np.int8), rng.integers(-1, 2, (5, 4, 2), np.int8)
    x, y, wide_a, wide_b = TernaryArray(a), TernaryArray(b), a.astype(np.int32), b.astype(np.int32)
    for axes in (1, np.int64(1), (np.int64(2), np.int64(0)), ([1, 2], [1, 0]), ((2,), (0,)), (-1, 0), 0):
        assert_same(np.tensordot(x, y, axes), np.tensordot(wide_a, wide_b, axes))
    assert_same(np.dot(x, y.swapaxes(0, 1)), np.dot(wide_a, wide_b.swapaxes(0, 1)))
    assert_same(x[0].dot(y[:, 0, 0]), wide_a[0].dot(wide_b[:, 0, 0]))
    assert_same(np.dot(x[0, 0], y[:, 0, 0]), np.dot(wide_a[0, 0], wide_b[:, 0, 0]))
    assert_same(np.inner(x, x[0]), np.inner(wide_a, wide_a[0]))
    assert_same(np.dot(x, TernaryArray(-1)), -wide_a)


def test_a_dense_operand_gives_numpys_product() -> None:
    a, w = np.array([[1, -1, 0], [0, 1, 1]], np.int8), np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
    x = TernaryArray(a)
    assert_same(x @ w, a @ w)
    assert_same(w.T @ x.T, w.T @ a.T)
    assert_same(np.dot(x, w), np.dot(a, w))
    assert_same(np.tensordot(x, w, 1), np.tensordot(a, w, 1))


def test_shapes_that_do_not_go_together_are_refused() -> None:
    a = TernaryArray.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) by \(2, 3\): 3 columns meet 2 rows"):
        a @ a
    with pytest.raises(ValueError, match="at least one dimension"):
        a @ TernaryArray(1)
    with pytest.raises(ValueError, match="differ along axes"):
        np.tensordot(a, a, 1)
