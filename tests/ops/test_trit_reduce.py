import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("trit_reduce")


@pytest.mark.parametrize("k", [*helpers.EDGE_SIZES, 300_001])
def test_counts_are_those_of_the_values(k: int) -> None:
    a, b = helpers.random_codes(3, k), helpers.random_codes(3, k, seed=1)
    packed = ops.ternary_pack(a), ops.ternary_pack(b)
    for codes, other in ((a, None), (a * b, packed[1])):
        counts = ops.trit_reduce(packed[0], other, k)
        assert torch.equal(counts[:, 0] - counts[:, 1], codes.long().sum(1))
        assert torch.equal(counts.sum(1), codes.long().abs().sum(1))
        assert torch.equal(counts, reference.trit_reduce(packed[0], other, k))


def test_sums_of_bytes_do_not_overflow() -> None:
    ones = torch.full((1, 1 << 16), 0x55, dtype=torch.uint8)
    assert ops.trit_reduce(ones, None, 1 << 18).tolist() == [[1 << 18, 0]]
    assert ops.trit_reduce(ones, ones << 1, 1 << 18).tolist() == [[0, 1 << 18]]


def test_padding_does_not_count() -> None:
    full = torch.full((1, 2), 0x55, dtype=torch.uint8)
    assert ops.trit_reduce(full, None, 5).tolist() == [[5, 0]]
    assert ops.trit_reduce(full, full, 5).tolist() == [[5, 0]]


def test_one_row_stands_for_all() -> None:
    a, b = helpers.pack(helpers.random_codes(5, 21)), helpers.pack(helpers.random_codes(1, 21, seed=1))
    expected = ops.trit_reduce(a, b.expand(5, 6).clone(), 21)
    assert torch.equal(ops.trit_reduce(a, b, 21), expected)
    assert torch.equal(ops.trit_reduce(b, a, 21), expected)


def test_wrong_calls_are_refused_with_values() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    with pytest.raises(ValueError, match=r"a must be \(rows, 2\) uint8 for columns=8, got \[3, 3\]"):
        ops.trit_reduce(a, None, 8)
    with pytest.raises(ValueError, match="as many rows, or one of them one, got 3 and 2"):
        ops.trit_reduce(a, a[:2], 9)
    with pytest.raises(TypeError, match="a must be uint8, got int64"):
        ops.trit_reduce(a.long(), None, 9)


def test_op_passes_opcheck() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    torch.library.opcheck(torch.ops.bittorch.trit_reduce.default, (a, a[:1], 9))
