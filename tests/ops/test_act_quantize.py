import numpy as np
import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

OP = "act_quantize"


def _expected(x: Tensor) -> tuple[Tensor, Tensor]:
    """The contract in NumPy float32; rows are finite."""
    wide = x.float().numpy()
    m = np.maximum(np.abs(wide).max(axis=-1, keepdims=True, initial=0), np.float32(1e-5))
    q = np.clip(np.rint(wide * (np.float32(127) / m)), -127, 127)
    return torch.from_numpy(q.astype(np.int8)), torch.from_numpy(m / np.float32(127))


def _expected_digits(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The contract in NumPy float64 and Python's integers; rows are finite."""
    wide, qmax = x.double().numpy(), sum(127 * 256**d for d in range(bits // 8))
    m = np.abs(wide).max(axis=-1, keepdims=True, initial=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.clip(np.rint(wide * (qmax / m)), -qmax, qmax)
    code = np.where(m > 0, q, 0).astype(np.int64)
    digits = []
    for _ in range(bits // 8):
        digits.append((code + 128) % 256 - 128)
        code = (code - digits[-1]) // 256
    assert not code.any()
    return torch.from_numpy(np.stack(digits, -2).astype(np.int8)), torch.from_numpy(m / qmax)


def _assert_quantized(x: Tensor) -> None:
    for bits, expected in ((8, _expected(x)), (16, _expected_digits(x, 16)), (24, _expected_digits(x, 24))):
        for actual, of_reference, value in zip(
            ops.act_quantize(x, bits), reference.act_quantize(x, bits), expected, strict=True
        ):
            helpers.assert_same_bits(actual, value)
            helpers.assert_same_bits(of_reference, value)


@pytest.mark.parametrize("k", [*helpers.EDGE_SIZES, 15, 16, 17, 1000])
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_act_quantize_equals_formula_at_edge_sizes(forced: str, dtype: torch.dtype, k: int) -> None:
    _assert_quantized(helpers.randn(5, k, dtype=dtype))


@pytest.mark.parametrize("magnitude", [1e-42, 1e-20, 1e-6, 1e-5, 1e3, 1e30, 3.3e38])
def test_act_quantize_equals_formula_at_any_magnitude(forced: str, magnitude: float) -> None:
    x = helpers.randn(6, 99)
    _assert_quantized(x / x.abs().amax(1, keepdim=True) * magnitude)


def test_act_quantize_rounds_half_to_even(forced: str) -> None:
    q, scale = ops.act_quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]]))
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]
    assert scale.tolist() == [[1.0]]


def test_act_quantize_of_zero_row_has_the_floor_scale(forced: str) -> None:
    q, scale = ops.act_quantize(torch.zeros(2, 9))
    assert not q.any()
    assert torch.equal(scale, torch.full((2, 1), np.float32(1e-5) / np.float32(127)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("column", [0, 17, 69])
def test_act_quantize_of_non_finite_row_has_codes_0_and_scale_nan(
    forced: str, value: float, dtype: torch.dtype, column: int
) -> None:
    x = helpers.randn(3, 70, dtype=dtype)
    clean_q, clean_scale = ops.act_quantize(x)
    x[1, column] = value
    q, scale = ops.act_quantize(x)
    assert not q[1].any()
    assert scale.isnan().flatten().tolist() == [False, True, False]
    assert torch.equal(q[::2], clean_q[::2])
    assert torch.equal(scale[::2], clean_scale[::2])
    for actual, expected in zip((q, scale), reference.act_quantize(x), strict=True):
        helpers.assert_same_bits(actual, expected)


@pytest.mark.parametrize("shape", [(3,), (0, 5), (2, 3, 9), (2, 0), (1, 1, 1, 4)], ids=str)
def test_act_quantize_keeps_batch_shape(forced: str, shape: tuple[int, ...]) -> None:
    x = helpers.randn(*shape)
    q, scale = ops.act_quantize(x)
    assert q.shape == shape
    assert q.dtype == torch.int8
    assert scale.shape == (*shape[:-1], 1)
    _assert_quantized(x)


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
@pytest.mark.parametrize("shape", [(9, 70), (2, 5, 33)], ids=str)
def test_act_quantize_of_layout_equals_contiguous(forced: str, layout: str, shape: tuple[int, ...]) -> None:
    _assert_quantized(helpers.LAYOUTS[layout](helpers.randn(*shape)))


def test_act_quantize_of_expanded_row(forced: str) -> None:
    _assert_quantized(helpers.randn(1, 40).expand(7, 40))


def test_act_quantize_with_two_threads_equals_one(forced: str) -> None:
    x = helpers.randn(400, 600)
    with helpers.threads(1):
        one = ops.act_quantize(x)
    with helpers.threads(2):
        two = ops.act_quantize(x)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    _assert_quantized(x)


def test_act_quantize_error_is_at_most_half_a_step(forced: str) -> None:
    x = helpers.randn(50, 300)
    q, scale = ops.act_quantize(x)
    assert ((q.double() * scale.double() - x.double()).abs() <= scale.double() * 0.5 * (1 + 1e-5)).all()
    assert (q.abs().amax(1) == 127).all()


def test_act_quantize_refuses_int8() -> None:
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16, got int8"):
        ops.act_quantize(torch.zeros(2, 3, dtype=torch.int8))


@pytest.mark.parametrize("bits", [0, 4, 12, 32])
def test_act_quantize_refuses_other_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be 8, 16 or 24, got {bits}"):
        ops.act_quantize(torch.ones(2, 3), bits)


def test_act_quantize_refuses_scalar() -> None:
    with pytest.raises(ValueError, match="at least one dimension"):
        ops.act_quantize(torch.tensor(1.0))


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("bits", [8, 16, 24])
def test_act_quantize_passes_opcheck(dtype: torch.dtype, bits: int) -> None:
    torch.library.opcheck(torch.ops.bittorch.act_quantize.default, (helpers.randn(2, 3, 9, dtype=dtype), bits))
