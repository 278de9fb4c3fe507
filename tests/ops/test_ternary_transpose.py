import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers


@helpers.each("k", helpers.EDGE_SIZES)
@helpers.each("n", helpers.EDGE_SIZES)
def test_transpose_packs_the_transposed_codes(n: int, k: int) -> None:
    codes = helpers.random_codes(n, k)
    expected = helpers.pack(codes.t())
    assert torch.equal(ops.ternary_transpose(helpers.pack(codes), k), expected)
    assert torch.equal(reference.ternary_transpose(helpers.pack(codes), k), expected)


def test_transpose_gives_golden_bytes() -> None:
    packed = torch.tensor([[0x49, 0x02], [0x94, 0x08]], dtype=torch.uint8)  # + - 0 + - 0 over 0 + + - 0 -
    assert ops.ternary_transpose(packed, 6).flatten().tolist() == [0x1, 0x6, 0x4, 0x9, 0x2, 0x8]


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_transpose_of_layout_equals_contiguous(layout: str) -> None:
    codes = helpers.random_codes(6, 72)
    packed = helpers.LAYOUTS[layout](helpers.pack(codes))
    assert torch.equal(ops.ternary_transpose(packed, 72), helpers.pack(codes.t()))


def test_transpose_with_two_threads_equals_one() -> None:
    codes = helpers.random_codes(300, 1003)
    packed = helpers.pack(codes)
    with helpers.threads(2):
        assert torch.equal(ops.ternary_transpose(packed, 1003), helpers.pack(codes.t()))


def test_transpose_refuses_other_shapes_and_dtypes() -> None:
    packed = helpers.pack(helpers.random_codes(3, 9))
    with pytest.raises(ValueError, match=r"w_packed must be .* for in_features=13"):
        ops.ternary_transpose(packed, 13)
    with pytest.raises(TypeError, match="w_packed must be uint8"):
        ops.ternary_transpose(packed.to(torch.int8), 9)


def test_transpose_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.bittorch.ternary_transpose.default, (helpers.pack(helpers.random_codes(3, 9)), 9))
