from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bittorch.array import TernaryArray, trit_counts
from tests.array.arrays import assert_same, few, shifted, trits


@few
@given(trits(), st.data())
@pytest.mark.filterwarnings("ignore:.*divide.*:RuntimeWarning", "ignore:Mean of empty:RuntimeWarning")
def test_reductions_are_those_of_numpy(values: Any, data: Any) -> None:
    chosen = tuple(d for d in range(values.ndim) if data.draw(st.booleans()))
    axis = data.draw(st.sampled_from([None, chosen, *(d - values.ndim for d in chosen)]))
    keepdims = data.draw(st.booleans())
    a = shifted(values)
    for function in (np.sum, np.prod, np.any, np.all, np.count_nonzero, np.mean):
        assert_same(function(a, axis=axis, keepdims=keepdims), function(values, axis=axis, keepdims=keepdims))
    for extreme in (np.min, np.max):
        try:
            expected = extreme(values, axis=axis, keepdims=keepdims)
        except ValueError:
            with pytest.raises(ValueError, match="no identity"):
                extreme(a, axis=axis, keepdims=keepdims)
        else:
            assert_same(extreme(a, axis=axis, keepdims=keepdims), expected)
    minus, zero, plus = trit_counts(a, axis, keepdims)
    assert_same(plus, (values == 1).sum(axis, keepdims=keepdims))
    assert_same(minus, (values == -1).sum(axis, keepdims=keepdims))
    assert_same(zero, (values == 0).sum(axis, keepdims=keepdims))


def test_methods_types_and_out() -> None:
    values = np.array([[1, -1, 1], [0, 1, 1]], np.int8)
    a = TernaryArray(values)
    for name in ("sum", "mean", "prod", "min", "max", "any", "all"):
        assert_same(getattr(a, name)(1), getattr(values, name)(1))
        assert_same(getattr(a, name)(), getattr(values, name)())
    assert_same(a.sum(0, dtype=np.float32), values.sum(0, dtype=np.float32))
    out = np.zeros(2, np.int64)
    assert a.sum(1, out=out) is out
    assert out.tolist() == [1, 2]
    assert_same(np.add.reduce(a, axis=0), np.add.reduce(values, axis=0))
    assert_same(np.cumsum(a, 1), np.cumsum(values, 1))
    assert_same(np.argmax(a, axis=1), np.argmax(values, axis=1))


def test_what_counts_do_not_tell_is_as_numpy_has_it() -> None:
    calls: list[Any] = [
        lambda a: np.sum(a, where=a > 0),
        lambda a: np.max(a, initial=3, axis=0),
        lambda a: np.sum(a, dtype=bool),
        lambda a: np.sum(a[0, ..., 0], axis=0),
        lambda a: np.min(a[0, ..., 0], axis=-1),
    ]
    values = np.array([[1, -1]], np.int8)
    for call in calls:
        assert_same(call(TernaryArray(values)), call(values))


def test_wrong_axes_are_refused() -> None:
    a = TernaryArray.zeros((2, 3))
    with pytest.raises(np.exceptions.AxisError, match="axis 2 is out of bounds for array of dimension 2"):
        a.sum(2)
    with pytest.raises(ValueError, match="duplicate"):
        a.sum((0, -2))
