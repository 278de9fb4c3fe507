from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bittorch.array import TernaryArray
from tests.array.arrays import assert_same, few, shifted, trits

VALUES = np.random.default_rng(0).integers(-1, 2, (3, 4, 5), np.int8)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: np.transpose(a, (2, 0, 1)),
        lambda a: np.swapaxes(a, 0, 2),
        lambda a: np.moveaxis(a, 0, -1),
        lambda a: np.expand_dims(a, 1),
        lambda a: np.squeeze(np.expand_dims(a, 1), 1),
        lambda a: np.flip(a, (0, 2)),
        lambda a: np.rot90(a),
        lambda a: np.diagonal(a, 1, 0, 2),
        lambda a: np.broadcast_to(a, (2, 3, 4, 5)),
        lambda a: np.reshape(a, (4, 15)),
        lambda a: np.ravel(a),
        lambda a: np.copy(a),
    ],
)
def test_functions_of_numpy_give_trits(change: Any) -> None:
    y = change(shifted(VALUES))
    assert isinstance(y, TernaryArray)
    assert_same(y, change(VALUES))


def test_a_flipped_transpose_is_a_view() -> None:
    a = TernaryArray.zeros((2, 3))
    np.flip(a.T)[0, 0] = 1
    assert a.tolist() == [[0, 0, 0], [0, 0, 1]]


@few
@given(st.lists(trits((2, 3)), min_size=1, max_size=4), st.sampled_from([0, 1, -1]))
def test_joins_are_packed(values: Any, axis: int) -> None:
    arrays = [shifted(v) for v in values]
    for function in (np.concatenate, np.stack):
        y = function(arrays, axis=axis)
        assert isinstance(y, TernaryArray)
        assert_same(y, function(values, axis=axis))
        assert_same(function([*arrays, values[0] * 3], axis=axis), function([*values, values[0] * 3], axis=axis))


def test_whole_bytes_join_as_bytes() -> None:
    a, b = VALUES[:, :, :4], VALUES[:1, :, 1:]
    assert_same(np.concatenate([TernaryArray(a), TernaryArray(b)]), np.concatenate([a, b]))
    with pytest.raises(ValueError, match="dimension"):
        np.concatenate([TernaryArray(a), TernaryArray(VALUES)])
    with pytest.raises(ValueError, match="same shape"):
        np.stack([TernaryArray(a), TernaryArray(VALUES)])


def test_splits_are_views() -> None:
    a = TernaryArray(VALUES)
    for sections in (2, [1, 3], [3, 1], [-1, -3], []):
        for part, expected in zip(np.split(a, sections, 1), np.split(VALUES, sections, 1), strict=True):
            assert_same(part, expected)
    with pytest.raises(ValueError, match="equal division"):
        np.split(a, 2)
    np.hsplit(a, 2)[1][0] = 1
    assert a[0, 2:].all()
    np.array_split(a, 2)[1].fill(0)
    assert not a[2].any()


def test_a_flip_of_one_trit_is_itself() -> None:
    assert np.flip(TernaryArray(-1)).tolist() == -1


def test_shared_memory_is_seen() -> None:
    a, bytes_ = TernaryArray.zeros((4, 8)), np.zeros(2, np.uint8)
    assert np.shares_memory(a[0], a.T)
    assert not np.may_share_memory(a[0], a[1])
    assert not np.shares_memory(a[2:2], a)
    assert np.shares_memory(TernaryArray.from_packed(bytes_, 8), bytes_)


def test_where_is_packed_for_trits() -> None:
    a = TernaryArray(VALUES)
    y = np.where(a > 0, a, -1)
    assert isinstance(y, TernaryArray)
    assert_same(y, np.where(VALUES > 0, VALUES, -1).astype(np.int8))
    assert_same(np.where(a > 0, a, 2.5), np.where(VALUES > 0, VALUES, 2.5))
    assert_same(np.stack(np.where(a)), np.stack(np.where(VALUES)))


def test_equality_of_arrays() -> None:
    a = TernaryArray(VALUES)
    assert np.array_equal(a, shifted(VALUES))
    assert np.array_equal(a, VALUES)
    assert not np.array_equal(a, -a)
    assert not np.array_equal(a, a[0])
    assert (np.shape(a), np.ndim(a), np.size(a), np.size(a, 1)) == ((3, 4, 5), 3, 60, 4)
