import pytest
import torch

from bittorch.quant import pack_ternary, unpack_ternary
from tests import helpers

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES, ids=helpers.dtype_id)
def test_pack_gives_the_bytes_of_the_format(dtype: torch.dtype) -> None:
    w_tern = torch.tensor([[1, -1, 0, 1, -1, 0], [0, 1, 1, -1, 0, -1]]).to(dtype)
    assert pack_ternary(w_tern).tolist() == [[0x49, 0x02], [0x94, 0x08]]


@pytest.mark.parametrize("columns", helpers.EDGE_SIZES)
def test_unpack_is_the_inverse(columns: int) -> None:
    codes = helpers.random_codes(3, columns)
    packed = pack_ternary(codes)
    assert torch.equal(packed, helpers.pack(codes))
    again = unpack_ternary(packed, columns)
    assert again.dtype == torch.int8
    assert torch.equal(again, codes)


@pytest.mark.parametrize("value", [0.5, 2, -2, 256, 257, float("nan"), float("inf")])
def test_pack_refuses_other_values_by_row_and_column(value: float) -> None:
    w = torch.zeros(3, 5, dtype=torch.float64)
    w[1, 4] = value
    with pytest.raises(ValueError, match=r"must hold -1, 0 and \+1 only, got .* in row 1, column 4"):
        pack_ternary(w)


def test_pack_refuses_what_is_no_matrix_of_numbers() -> None:
    with pytest.raises(ValueError, match=r"\(out_features, in_features\), got shape \(4,\)"):
        pack_ternary(torch.zeros(4))
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="must be real numbers"):
            pack_ternary(torch.zeros(2, 4, dtype=dtype))


def test_unpack_refuses_damaged_bytes_and_other_widths() -> None:
    with pytest.raises(ValueError, match="reserved code 11 at row 1, column 2"):
        unpack_ternary(torch.tensor([[0], [0b00110000]], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="pad rows with code 00"):
        unpack_ternary(torch.tensor([[0b01000000]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="w_packed must be"):
        unpack_ternary(torch.zeros(2, 1, dtype=torch.uint8), 9)
    with pytest.raises(TypeError, match="uint8"):
        unpack_ternary(torch.zeros(2, 1), 4)
