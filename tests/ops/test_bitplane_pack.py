import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("bitplane_pack")


@pytest.mark.parametrize("k", [*helpers.EDGE_SIZES, 511, 512, 513, 1100])
def test_planes_are_those_of_the_reference(k: int) -> None:
    packed = helpers.pack(helpers.random_codes(3, k))
    assert torch.equal(ops.bitplane_pack(packed, k), reference.bitplane_pack(packed, k))


def test_a_trit_has_its_bits_where_the_layout_says() -> None:
    codes = torch.zeros(1, 512, dtype=torch.int8)
    codes[0, 5], codes[0, 256 + 2] = 1, -1
    expected = torch.zeros(1, 128, dtype=torch.uint8)
    expected[0, 1], expected[0, 0], expected[0, 64] = 1 << 2, 1 << 5, 1 << 5
    assert torch.equal(ops.bitplane_pack(helpers.pack(codes), 512), expected)


def test_wrong_calls_are_refused_with_values() -> None:
    with pytest.raises(ValueError, match=r"w_packed must be \(rows, 2\) uint8 for columns=8, got \[3, 3\]"):
        ops.bitplane_pack(torch.zeros(3, 3, dtype=torch.uint8), 8)


def test_op_passes_opcheck() -> None:
    packed = helpers.pack(helpers.random_codes(3, 9))
    torch.library.opcheck(torch.ops.bittorch.bitplane_pack.default, (packed, 9))
