from typing import Any

import numpy as np
import pytest

from bittorch.array import TernaryArray
from tests.array.arrays import assert_same

MASK = np.array([True, False, True])


def test_where_leaves_the_other_elements_of_out_alone() -> None:
    a = TernaryArray([1, 1, -1])
    out = TernaryArray([0, -1, 0])
    assert np.add(a, a, out=out, where=MASK) is out
    assert out.tolist() == [1, -1, -1]
    np.floor_divide(a, 1, out=out, where=~MASK)
    assert out.tolist() == [1, 1, -1]
    dense = np.full(3, 7, np.int8)
    np.negative(a, out=dense, where=MASK)
    assert dense.tolist() == [-1, 7, 1]


def test_out_takes_what_numpys_out_takes() -> None:
    a = TernaryArray([[1, 0, -1]])
    for refused, error, message in (
        (lambda: np.multiply(a, 2.5, out=np.zeros((1, 3), np.int8)), TypeError, "Cannot cast"),
        (lambda: np.mean(a, out=np.zeros((), int)), TypeError, "Cannot cast"),
        (lambda: np.sum(a, 0, out=np.zeros((5, 3))), ValueError, r"shape \(3,\) of the result, got \(5, 3\)"),
        (lambda: np.add(a, a, out=TernaryArray([0, 0, 0])), ValueError, r"\(1, 3\) does not go to out of shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            refused()
    quotient = TernaryArray([0])
    assert np.divmod(TernaryArray([-1]), 2, out=(quotient, None))[1].tolist() == [1]
    assert quotient.tolist() == [-1]


def test_nothing_is_written_to_a_copy_that_is_lost() -> None:
    for write in (
        lambda a: np.copyto(a, [0, -1, 1]),
        lambda a: np.copyto(dst=a, src=TernaryArray(-1), where=MASK),
        lambda a: np.put(a, [0, -1], [-1, 1]),
        lambda a: np.place(a, MASK, [0]),
        lambda a: np.putmask(a, MASK, 0),
        lambda a: np.put_along_axis(a, np.array([1]), -1, 0),
        lambda a: np.fill_diagonal(a.reshape(3, 1), 0),
        lambda a: np.cumsum([0, 1, -1], out=a),
        lambda a: np.clip(a, -1, 0, out=a),
        lambda a: np.dot(np.eye(3), [0, 1, -1], out=a),
        lambda a: np.einsum("i,i->i", a, a, out=a),
        lambda a: np.sum(np.eye(3), 1, out=a),
    ):
        a, dense = TernaryArray([1, 1, -1]), np.array([1.0, 1, -1])
        write(a)
        write(dense)
        assert a.tolist() == dense.tolist() != [1, 1, -1]
    for refused in (
        lambda a: np.clip(a, -1, 0, a),
        lambda a: np.atleast_2d(a).fill(0),
        lambda a: np.put(a, 0, np.array([255])),
        lambda a: np.put(a, 0, 0.5),
    ):
        with pytest.raises(ValueError, match=r"read-only|got 255|got 0\.5"):
            refused(a)
    counts = np.zeros(3, int)
    np.add.at(counts, [0, 0, 2], TernaryArray([1, 1, -1]))
    assert counts.tolist() == [2, 0, -1]


def test_masked_arrays_take_trits_and_not_their_bytes() -> None:
    values = np.array([1, 1, -1], np.int8)
    masked, a = np.ma.masked_array([1, 2, 3], MASK), TernaryArray(values)
    for y, expected in ((masked + a, masked + values), (np.ma.add(a, masked), masked + values)):
        assert_same(y.compressed(), expected.compressed())


def test_first_arguments_have_the_names_of_numpy() -> None:
    values = np.arange(6).reshape(2, 3) % 3 - 1
    calls: list[Any] = [
        lambda a: np.flip(m=a),
        lambda a: np.broadcast_to(array=a, shape=(2, 2, 3)),
        lambda a: np.stack(np.split(ary=a, indices_or_sections=2)),
        lambda a: np.array_equal(a1=a, a2=a),
        lambda a: np.reshape(a, (3, 2), order="F"),
        lambda a: np.ravel(a, order="F"),
        lambda a: np.size(a, (0, 1)),
    ]
    for call in calls:
        assert_same(np.asarray(call(TernaryArray(values))).astype(int), np.asarray(call(values)).astype(int))
