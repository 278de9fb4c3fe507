import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("ternary_pack")


@pytest.mark.parametrize(
    ("codes", "golden"),
    [
        ([+1, -1, 0, +1, -1, 0], [0x49, 0x02]),
        ([0, +1, +1, -1, 0, -1], [0x94, 0x08]),
        ([-1, -1, -1, -1], [0xAA]),
        ([+1], [0x01]),
        ([0, 0, 0, -1], [0x80]),
    ],
    ids=str,
)
def test_pack_gives_golden_bytes(codes: list[int], golden: list[int]) -> None:
    rows = torch.tensor([codes, codes], dtype=torch.int8)
    assert ops.ternary_pack(rows).tolist() == [golden, golden]
    assert reference.ternary_pack(rows).tolist() == [golden, golden]


@helpers.each("k", helpers.EDGE_SIZES)
@helpers.each("n", [0, 1, 5])
def test_pack_equals_definition_at_edge_sizes(n: int, k: int) -> None:
    codes = helpers.random_codes(n, k)
    packed = ops.ternary_pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (n, (k + 3) // 4)
    assert torch.equal(packed, helpers.pack(codes))
    assert torch.equal(reference.ternary_pack(codes), helpers.pack(codes))


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_pack_of_layout_equals_contiguous(layout: str) -> None:
    codes = helpers.random_codes(6, 70)
    assert torch.equal(ops.ternary_pack(helpers.LAYOUTS[layout](codes)), helpers.pack(codes))


def test_pack_of_expanded_row_repeats_it() -> None:
    row = helpers.random_codes(1, 9)
    assert torch.equal(ops.ternary_pack(row.expand(4, 9)), helpers.pack(row).expand(4, 3))


@helpers.each("value", [2, -2, 3, 127, -128])
@helpers.each("column", [0, 3, 4, 64])
def test_pack_refuses_other_values_with_row_and_column(value: int, column: int) -> None:
    codes = helpers.random_codes(4, 65)
    codes[2, column] = value
    with pytest.raises(ValueError, match=rf"got {value} at row 2, column {column}\b"):
        ops.ternary_pack(codes)


def test_pack_names_the_first_bad_value() -> None:
    codes = torch.zeros(3, 9, dtype=torch.int8)
    codes[2, 0], codes[1, 8], codes[1, 5] = 2, 2, 7
    with pytest.raises(ValueError, match="got 7 at row 1, column 5"):
        ops.ternary_pack(codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8, torch.bool], ids=helpers.dtype_id)
def test_pack_refuses_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="codes must be int8, got"):
        ops.ternary_pack(torch.zeros(2, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 4)], ids=str)
def test_pack_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="codes must be"):
        ops.ternary_pack(torch.zeros(shape, dtype=torch.int8))


def test_pack_with_two_threads_equals_one() -> None:
    codes = helpers.random_codes(300, 1003)
    with helpers.threads(1):
        one = ops.ternary_pack(codes)
    with helpers.threads(2):
        two = ops.ternary_pack(codes)
    assert torch.equal(one, two)
    assert torch.equal(one, helpers.pack(codes))


def test_pack_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.bittorch.ternary_pack.default, (helpers.random_codes(3, 9),))
