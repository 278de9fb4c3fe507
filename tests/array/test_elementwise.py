from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bittorch import array
from bittorch.array import TernaryArray
from tests.array.arrays import assert_same, few, shifted, trits

TWO: dict[str, Callable[[Any, Any], Any]] = {
    "tadd": lambda a, b: np.clip(a + b, -1, 1),
    "tsub": lambda a, b: np.clip(a - b, -1, 1),
    "tmul": np.multiply,
    "tmin": np.minimum,
    "tmax": np.maximum,
    "tand": np.minimum,
    "tor": np.maximum,
    "tconsensus": lambda a, b: np.where(a == b, a, 0),
    "teq": np.equal,
    "tne": np.not_equal,
    "tlt": np.less,
    "tle": np.less_equal,
    "tgt": np.greater,
    "tge": np.greater_equal,
}
SATURATING = {np.add: TWO["tadd"], np.subtract: TWO["tsub"], np.multiply: np.multiply}


def _pair(data: Any) -> Any:
    broadcast = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=8, max_dims=3))
    return [data.draw(trits(shape)) for shape in broadcast.input_shapes]


@few
@given(st.data())
def test_functions_broadcast_and_give_packed_trits(data: Any) -> None:
    a, b = _pair(data)
    for name, expected in TWO.items():
        y = getattr(array, name)(TernaryArray(a), shifted(b))
        assert isinstance(y, TernaryArray)
        assert_same(y, expected(a, b).astype(np.int8))
    assert_same(array.tnot(shifted(a)), -a)
    assert_same(array.tabs(a), abs(a))


@few
@given(st.data())
def test_operators_of_two_arrays_saturate(data: Any) -> None:
    a, b = _pair(data)
    x, y = shifted(a), TernaryArray(b)
    pairs = [(x + y, np.clip(a + b, -1, 1)), (x - y, np.clip(a - b, -1, 1)), (x * y, a * b), (-x, -a), (~x, -a)]
    pairs += [(x & y, np.minimum(a, b)), (x | y, np.maximum(a, b)), (abs(x), abs(a)), (+x, a), (np.sign(x), a)]
    for actual, expected in pairs:
        assert isinstance(actual, TernaryArray)
        assert_same(actual, expected)
    for compare in (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal):
        assert_same(compare(x, y), compare(a, b))
    assert_same(x == y, a == b)


@few
@given(trits())
def test_mixed_arithmetic_is_dense_and_promoted_by_numpy(a: Any) -> None:
    x = TernaryArray(a)
    for other in (1, 3, 2.5, True, np.float32(2), np.full(a.shape, 7, np.int16)):
        assert_same(x + other, a + other)
        assert_same(other - x, other - a)
        assert_same(x == other, a == other)
    assert_same(x / 2, a / 2)
    assert_same(np.add(x, x, dtype=np.int32), np.add(a, a, dtype=np.int32))
    assert_same(np.exp(x), np.exp(a))


def test_rows_of_whole_bytes_repeat_without_a_copy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1, 2, (3, 5, 8), np.int8), rng.integers(-1, 2, (5, 8), np.int8)
    assert_same(TernaryArray(a) - TernaryArray(b[:1]), np.clip(a - b[:1], -1, 1))
    assert_same(TernaryArray(b) - TernaryArray(a), np.clip(b - a, -1, 1))
    assert_same(TernaryArray(a[:1]) - TernaryArray(a), np.clip(a[:1] - a, -1, 1))


def test_results_go_to_out_and_in_place() -> None:
    a, b = TernaryArray([1, 0, -1, 1, 1]), TernaryArray([1, 1, -1, -1, 0])
    view = TernaryArray.zeros((2, 5))
    np.add(a, b, out=view[1])
    assert view.tolist() == [[0] * 5, [1, 1, -1, 0, 1]]
    exact = np.empty(5, np.int8)
    np.add(a, b, out=exact, dtype=np.int8)
    assert exact.tolist() == [2, 1, -2, 0, 1]
    same = a
    same *= b
    assert same is a
    assert a.tolist() == [1, 0, 1, -1, 0]


def test_what_trits_do_not_have_is_refused() -> None:
    a = TernaryArray([1, 0])
    with pytest.raises(TypeError, match="no exclusive or; take tne"):
        a ^ a
    with pytest.raises(TypeError, match=r"add\.at does not write to a TernaryArray"):
        np.add.at(a, [0], 1)
    with pytest.raises(ValueError, match=r"shape \(2,\) and arg 1 with shape \(3,\)"):
        a + TernaryArray([1, 0, 1])
    with pytest.raises(ValueError, match="got 2 at index"):
        array.tadd(a, [2, 0])


@few
@given(trits())
def test_biased_trits_are_zero_one_and_two(a: Any) -> None:
    assert_same(array.to_biased(TernaryArray(a)), (a + 1).astype(np.uint8))
    assert_same(array.from_biased((a + 1).astype(np.uint8)), a)
    with pytest.raises(ValueError, match=r"must be 0, 1 or 2, got 3 at index \(1,\)"):
        array.from_biased([0, 3])
