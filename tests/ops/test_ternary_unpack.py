import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("ternary_unpack")


@helpers.each(
    ("golden", "codes"),
    [([0x49, 0x02], [+1, -1, 0, +1, -1, 0]), ([0x94, 0x08], [0, +1, +1, -1, 0, -1])],
    ids=str,
)
@helpers.each("dtype", [torch.int8, *helpers.FLOATS], ids=helpers.dtype_id)
def test_unpack_of_golden_bytes(golden: list[int], codes: list[int], dtype: torch.dtype) -> None:
    y = ops.ternary_unpack(torch.tensor([golden], dtype=torch.uint8), None, 6, dtype)
    assert y.dtype == dtype
    assert y.tolist() == [codes]


@helpers.each("k", helpers.EDGE_SIZES)
@helpers.each("n", [0, 1, 5])
def test_unpack_inverts_the_definition_at_edge_sizes(n: int, k: int) -> None:
    codes = helpers.random_codes(n, k)
    assert torch.equal(ops.ternary_unpack(helpers.pack(codes), None, k, torch.int8), codes)
    assert torch.equal(reference.ternary_unpack(helpers.pack(codes), None, k, torch.int8), codes)


@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_unpack_is_one_product_and_one_cast(granularity: helpers.Granularity, dtype: torch.dtype) -> None:
    codes = helpers.random_codes(7, 128)
    scale = helpers.random_scale(granularity, 7, 128)
    y = ops.ternary_unpack(helpers.pack(codes), scale, 128, dtype)
    # In float64 the product is exact; casting to float32 keeps it exact, for codes are 0 and +-1.
    assert torch.equal(y, helpers.dense(codes, scale).float().to(dtype))
    assert torch.equal(reference.ternary_unpack(helpers.pack(codes), scale, 128, dtype), y)


def test_unpack_uses_the_scale_of_each_group() -> None:
    y = ops.ternary_unpack(
        torch.tensor([[0x55, 0xAA]], dtype=torch.uint8), torch.tensor([[2.0, 3.0]]), 8, torch.float32
    )
    assert y.tolist() == [[2.0] * 4 + [-3.0] * 4]


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_unpack_of_layout_equals_contiguous(layout: str) -> None:
    codes, group = helpers.random_codes(6, 64), helpers.Granularity("group", 16)
    scale, rearranged = helpers.random_scale(group, 6, 64), helpers.LAYOUTS[layout]
    y = ops.ternary_unpack(rearranged(helpers.pack(codes)), rearranged(scale), 64, torch.float32)
    assert torch.equal(y, helpers.dense(codes, scale).float())


def test_unpack_of_expanded_row_and_scale() -> None:
    codes = helpers.random_codes(1, 10)
    y = ops.ternary_unpack(helpers.pack(codes).expand(3, 3), torch.tensor(0.5).expand(3), 10, torch.float32)
    assert torch.equal(y, codes.float().expand(3, 10) * 0.5)


def test_unpack_refuses_int8_with_a_scale() -> None:
    with pytest.raises(TypeError, match="must be floating, got dtype=int8"):
        ops.ternary_unpack(torch.zeros(2, 1, dtype=torch.uint8), torch.ones(2), 4, torch.int8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool], ids=helpers.dtype_id)
def test_unpack_refuses_other_result_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="dtype must be"):
        ops.ternary_unpack(torch.zeros(2, 1, dtype=torch.uint8), None, 4, dtype)


@pytest.mark.parametrize("in_features", [-1, 3 * 4 + 1, 8, 0], ids=str)
def test_unpack_refuses_in_features_of_other_width(in_features: int) -> None:
    with pytest.raises(ValueError, match=f"{in_features}"):
        ops.ternary_unpack(torch.zeros(2, 3, dtype=torch.uint8), None, in_features, torch.float32)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 3), (4, 0), (4, 2, 2), ()], ids=str)
def test_unpack_refuses_scale_of_other_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scale"):
        ops.ternary_unpack(torch.zeros(4, 4, dtype=torch.uint8), torch.ones(shape), 16, torch.float32)


def test_unpack_refuses_groups_that_split_a_byte() -> None:
    with pytest.raises(ValueError, match="8 groups a row, which do not cut in_features=16"):
        ops.ternary_unpack(torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 8), 16, torch.float32)


def test_unpack_refuses_half_scale() -> None:
    with pytest.raises(TypeError, match="scale must be float32, got"):
        ops.ternary_unpack(torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4).half(), 16, torch.float32)


@pytest.mark.parametrize("scale", [None, torch.ones(3)], ids=["codes", "scaled"])
def test_unpack_passes_opcheck(scale: torch.Tensor | None) -> None:
    packed = helpers.pack(helpers.random_codes(3, 9))
    torch.library.opcheck(torch.ops.bittorch.ternary_unpack.default, (packed, scale, 9, torch.float32))
