import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bittorch import ops
from bittorch.array import TernaryArray
from tests.array.arrays import assert_same, few, shapes, shifted, trits


@few
@given(trits())
def test_array_holds_its_trits_at_two_bits_each(values: Any) -> None:
    a = TernaryArray(values)
    assert (a.shape, a.ndim, a.size) == (values.shape, values.ndim, values.size)
    assert a.nbytes == a.to_packed().numel() == -(-values.size // 4)
    assert_same(a.to_numpy(), values)
    assert a.tolist() == values.tolist()
    assert torch.equal(a.to_torch(torch.float32), torch.from_numpy(values).float())
    for other in (TernaryArray.from_torch(torch.from_numpy(values).bfloat16()), pickle.loads(pickle.dumps(a))):
        assert_same(other, values)


@few
@given(st.data())
def test_basic_index_is_a_view_as_in_numpy(data: Any) -> None:
    values = data.draw(trits(hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)))
    key = data.draw(hnp.basic_indices(values.shape, allow_newaxis=True))
    a, b = TernaryArray(values), shifted(values)
    assert_same(a[key], values[key])
    assert_same(b[key], values[key])
    if isinstance(b[key], TernaryArray):
        part, dense = b[key], values.copy()
        new = data.draw(trits(part.shape))
        part[...] = new
        dense[key] = new
        assert_same(b, dense)


@few
@given(st.data())
def test_advanced_index_reads_and_writes_as_in_numpy(data: Any) -> None:
    values = data.draw(trits(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)))
    mask = data.draw(hnp.arrays(bool, values.shape))
    rows = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=4))
    a = shifted(values)
    for key in (mask, rows, (np.array(rows, int), ...)):
        assert_same(a[key], values[key])
        a[key] = 1
        values[key] = 1
        assert_same(a, values)


def test_writing_leaves_the_neighbours_alone() -> None:
    memory = TernaryArray([1, -1, 0, 1, -1, 0, 1, -1, 1])
    memory[2:6] = -1
    memory[8] = 0
    assert memory.tolist() == [1, -1, -1, -1, -1, -1, 1, -1, 0]
    far = TernaryArray.zeros((200, 300))
    far[:, 7] = 1
    far[5, ::50] = -1
    expected = np.zeros((200, 300), np.int8)
    expected[:, 7] = 1
    expected[5, ::50] = -1
    assert_same(far, expected)
    assert_same(far[:, 7], expected[:, 7])


def test_tensors_are_fancy_indices() -> None:
    values = np.array([[1, 0], [-1, 1], [0, -1]], np.int8)
    a = TernaryArray(values)
    for key in (torch.tensor([2, 0]), torch.tensor([[1]]), torch.tensor([True, False, True]), torch.tensor(1)):
        assert_same(a[key], values[key])
    a[torch.tensor([0, 2])] = -1
    assert a.tolist() == [[-1, -1], [-1, 1], [-1, -1]]


def test_shapes_are_read_only_and_taken_from_arrays() -> None:
    a = TernaryArray.zeros(np.array([2, 3]))
    assert a.reshape(np.array([3, 2])).shape == (3, 2)
    for name in ("shape", "size", "is_contiguous"):
        with pytest.raises(AttributeError):
            setattr(a.T, name, (1000, 1000))
    assert not hasattr(a, "view")  # of another type, which reads the bytes
    a[0] = [[[1, 0, -1]]]
    assert a[0].tolist() == [1, 0, -1]


def test_assignment_that_is_refused_writes_nothing() -> None:
    a = TernaryArray([1, 0, -1])
    with pytest.raises(ValueError, match=r"got 2 at index \(1,\)"):
        a[:2] = [1, 2]
    with pytest.raises(ValueError, match="broadcast"):
        a[:2] = TernaryArray([1, 1, 1])
    with pytest.raises(ValueError, match=r"got 2 at index \(0,\)"):
        a += np.array([1, 0, 0])
    with pytest.raises(ValueError, match="read-only"):
        np.broadcast_to(a, (2, 3))[0] = 1
    assert a.tolist() == [1, 0, -1]


@few
@given(trits(), st.data())
def test_reshape_and_transpose(values: Any, data: Any) -> None:
    a, axes = shifted(values), data.draw(st.permutations(range(values.ndim)))
    assert_same(a.transpose(axes), values.transpose(axes))
    assert_same(a.T.reshape(-1), values.T.reshape(-1))
    assert_same(a.reshape(-1), values.reshape(-1))
    assert_same(a.ravel().reshape(values.shape), values)
    with pytest.raises(ValueError, match="cannot reshape"):
        a.reshape(values.size + 1)


def test_reshape_of_what_is_contiguous_shares_its_trits() -> None:
    a = TernaryArray.zeros((4, 6))
    a.reshape(2, -1)[1, 3] = 1
    a[1].reshape(2, 3)[1, 1] = -1
    assert (a[2, 3], a[1, 4]) == (1, -1)


def test_packed_bytes_are_shared_with_torch() -> None:
    packed = ops.ternary_pack(torch.tensor([[1, 0, -1, 1], [0, 0, 1, -1]], dtype=torch.int8))
    a = TernaryArray.from_packed(packed, (2, 4))
    a[1, 0] = -1
    assert ops.ternary_unpack(packed, None, 4, torch.int8).tolist() == [[1, 0, -1, 1], [-1, 0, 1, -1]]
    assert a.to_packed().data_ptr() == packed.data_ptr()
    assert a[:, :3].to_packed().shape == (2,)
    assert torch.from_dlpack(a).tolist() == a.tolist()


def test_packed_bytes_of_a_part_are_a_copy_whatever_follows() -> None:
    for after in (0, 1):
        a = TernaryArray([1, 1, 1, after])
        packed = a[:3].to_packed()
        a[3] = -1
        assert packed.tolist() == [0b010101]
    assert TernaryArray([1, 0, -1])[1:].to_packed().tolist() == [0b1000]


@pytest.mark.parametrize(
    ("packed", "shape", "message"),
    [
        ([0, 0b1100], (2, 3), r"reserved code 11 at index \(1, 2\)"),
        ([0, 0b01 << 4], (2, 3), "padded with code 00 behind its 6 trits, got another at 6"),
        ([0, 0, 0], (2, 3), r"must be 2 contiguous bytes for shape \(2, 3\), got 3"),
        ([0], (-1,), "sizes must not be negative"),
        ([0], (1 << 62, 4), "must be 4611686018427387904 contiguous bytes"),
    ],
)
def test_packed_bytes_that_are_no_trits_are_refused(packed: list[int], shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryArray.from_packed(np.array(packed, np.uint8), shape)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[0, 1], [2, 0]], ValueError, r"must be -1, 0 or 1, got 2 at index \(1, 0\)"),
        (np.array([0, 255], np.uint8), ValueError, r"got 255 at index \(1,\)"),
        ([0.5], ValueError, r"got 0.5 at index \(0,\)"),
        ([float("nan")], ValueError, "got nan"),
        (-2, ValueError, r"got -2 at index \(\)"),
        (["1"], TypeError, "must be numbers"),
        ([1j], TypeError, "must be numbers"),
    ],
)
def test_other_values_are_refused_with_their_index(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TernaryArray(values)


def test_scalars_lengths_and_text() -> None:
    a = TernaryArray(-1)
    assert (a.shape, int(a), float(a), bool(a), [0, 5][a]) == ((), -1, -1.0, True, 5)
    assert isinstance(TernaryArray([1, 0])[0], np.int8)
    assert isinstance(TernaryArray([1, 0])[0, ...], TernaryArray)
    with pytest.raises(TypeError, match="0-d"):
        len(a)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(TernaryArray([1, 0]))
    assert repr(TernaryArray([[1, -1]])) == "TernaryArray([[ 1, -1]])"
    assert repr(TernaryArray.zeros((0, 2))) == "TernaryArray([], shape=(0, 2))"
    assert repr(TernaryArray.zeros((100, 100))) == "TernaryArray(shape=(100, 100), 2500 bytes)"
    assert [row.tolist() for row in TernaryArray([[1, 0], [0, -1]])] == [[1, 0], [0, -1]]
    assert 1 in TernaryArray([0, 1])
    assert -1 not in TernaryArray([0, 1])
    with pytest.raises(ValueError, match="always a copy"):
        np.asarray(a, copy=False)


def test_copies_are_independent() -> None:
    a = TernaryArray([[1, 0, -1]])
    for other in (a.copy(), copy.copy(a), copy.deepcopy(a), a.flatten(), a[:, ::-1].reshape(3)):
        other.fill(0)
    assert a.tolist() == [[1, 0, -1]]


@pytest.mark.parametrize("value", [-1, 0, 1])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_full_pads_with_zeros(size: int, value: int) -> None:
    a = TernaryArray.full(size, value)
    assert a.tolist() == [value] * size
    assert ops.ternary_check(a.to_packed()[None], size).tolist() == [-1]


def test_more_than_two_to_the_31_trits_keep_their_places() -> None:
    a = TernaryArray.zeros((1 << 31) + 8)
    a[(1 << 31) + 5] = -1
    assert a[(1 << 31) + 4 :].tolist() == [0, -1, 0, 0]
    assert a.sum() == -1


@few
@given(shapes)
def test_strides_count_trits(shape: Any) -> None:
    dense = np.zeros(shape, np.int8)
    if dense.size:
        assert TernaryArray.zeros(shape).strides == dense.strides
