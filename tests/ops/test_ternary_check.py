import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers


def _with_code(packed: torch.Tensor, row: int, column: int, code: int) -> torch.Tensor:
    damaged, shift = packed.clone(), 2 * (column % 4)
    byte = int(damaged[row, column // 4])
    damaged[row, column // 4] = byte & ~(3 << shift) | code << shift
    return damaged


@pytest.mark.parametrize("k", helpers.EDGE_SIZES)
def test_check_accepts_every_legal_row(k: int) -> None:
    packed = helpers.pack(helpers.random_codes(5, k))
    assert ops.ternary_check(packed, k).tolist() == [-1] * 5
    if k:
        assert reference.ternary_check(packed, k).tolist() == [-1] * 5
    ops.check_packed(packed, k)


@pytest.mark.parametrize("column", range(9))
def test_check_finds_the_reserved_code(column: int) -> None:
    packed = _with_code(helpers.pack(helpers.random_codes(4, 9)), 2, column, 3)
    assert ops.ternary_check(packed, 9).tolist() == [-1, -1, column, -1]
    assert reference.ternary_check(packed, 9).tolist() == [-1, -1, column, -1]
    with pytest.raises(ValueError, match=f"w_packed holds the reserved code 11 at row 2, column {column}"):
        ops.check_packed(packed, 9)


@pytest.mark.parametrize("code", [1, 2, 3])
@pytest.mark.parametrize("column", [9, 10, 11])
def test_check_finds_wrong_padding(column: int, code: int) -> None:
    packed = _with_code(helpers.pack(helpers.random_codes(4, 9)), 1, column, code)
    assert ops.ternary_check(packed, 9).tolist() == [-1, column, -1, -1]
    with pytest.raises(ValueError, match=f"in_features=9, got {code:02b} at row 1, column {column}"):
        ops.check_packed(packed, 9)


def test_check_reports_the_first_column_of_each_row() -> None:
    packed = helpers.pack(torch.zeros(3, 12, dtype=torch.int8))
    packed[0, 1], packed[0, 2], packed[2, 0] = 0b11_00_11_00, 0xFF, 0xFF
    assert ops.ternary_check(packed, 12).tolist() == [5, -1, 0]


def test_check_names_the_tensor() -> None:
    with pytest.raises(ValueError, match=r"^layer\.weight_packed holds"):
        ops.check_packed(torch.full((1, 1), 255, dtype=torch.uint8), 4, "layer.weight_packed")


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_check_of_layout_equals_contiguous(layout: str) -> None:
    packed = _with_code(helpers.pack(helpers.random_codes(6, 24)), 3, 17, 3)
    assert ops.ternary_check(helpers.LAYOUTS[layout](packed), 24).tolist() == [-1, -1, -1, 17, -1, -1]


def test_check_refuses_other_dtype() -> None:
    with pytest.raises(TypeError, match="w_packed must be uint8, got"):
        ops.ternary_check(torch.zeros(1, 1, dtype=torch.int8), 4)


def test_check_refuses_other_width_with_both_values() -> None:
    with pytest.raises(ValueError, match=r"\(out_features, 4\) uint8 for in_features=15, got \[8, 3\]"):
        ops.ternary_check(torch.zeros(8, 3, dtype=torch.uint8), 15)


def test_check_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.bittorch.ternary_check.default, (helpers.pack(helpers.random_codes(3, 9)), 9))
