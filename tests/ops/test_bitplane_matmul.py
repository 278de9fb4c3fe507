import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("bitplane_matmul")


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(0, 3, 8), (1, 1, 0), (3, 0, 8), (1, 7, 1), (4, 3, 511), (5, 8, 512), (9, 70, 1601), (2, 2, 40000)],
)
def test_product_is_the_exact_one(m: int, n: int, k: int) -> None:
    a, b = helpers.random_codes(m, k), helpers.random_codes(n, k, seed=1)
    rows = ops.ternary_pack(a), ops.ternary_pack(b)
    expected = (a.double() @ b.double().t()).to(torch.int32)
    assert torch.equal(ops.bitplane_matmul(*rows, k), expected)
    planes = ops.bitplane_pack(rows[1], k)
    assert torch.equal(ops.bitplane_matmul(rows[0], planes, k, "planes"), expected)
    assert torch.equal(reference.bitplane_matmul(rows[0], planes, k, "planes"), expected)
    assert torch.equal(reference.bitplane_matmul(*rows, k), expected)


def test_long_rows_do_not_overflow_the_counts() -> None:
    ones = torch.full((1, 1 << 15), 0x55, dtype=torch.uint8)
    assert ops.bitplane_matmul(ones, torch.cat((ones, ones << 1)), 1 << 17).tolist() == [[1 << 17, -(1 << 17)]]


def test_wrong_calls_are_refused_with_values() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    with pytest.raises(ValueError, match="layout must be 'rows' or 'planes', got 'bits'"):
        ops.bitplane_matmul(a, a, 9, "bits")
    with pytest.raises(ValueError, match=r"b must be \(rows, 128\) uint8 planes for columns=9, got \[3, 3\]"):
        ops.bitplane_matmul(a, a, 9, "planes")
    with pytest.raises(ValueError, match=r"a must be \(rows, 2\) uint8 for columns=8, got \[3, 3\]"):
        ops.bitplane_matmul(a, a, 8)
    with pytest.raises(ValueError, match=r"columns must be below 2\^31"):
        ops.bitplane_matmul(a, a, 1 << 31)
    with pytest.raises(TypeError, match="b must be uint8, got int8"):
        ops.bitplane_matmul(a, a.to(torch.int8), 9)


def test_op_passes_opcheck() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    torch.library.opcheck(torch.ops.bittorch.bitplane_matmul.default, (a, a, 9))
