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


@helpers.each("k", [*helpers.EDGE_SIZES, 15, 16, 17, 1000])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_act_quantize_equals_formula_at_edge_sizes(forced: str, dtype: torch.dtype, k: int) -> None:
    _assert_quantized(helpers.randn(5, k, dtype=dtype))


@helpers.each("magnitude", [1e-42, 1e-20, 1e-6, 1e-5, 1e3, 1e30, 3.3e38])
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


@helpers.each("value", [float("nan"), float("inf"), float("-inf")])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("column", [0, 17, 69])
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


# A norm in front


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The contract in NumPy: squares exact in float64, 256 sums, a tree; then two products in float32."""
    wide, w = x.float().numpy(), weight.float().numpy()
    lanes = np.zeros((len(wide), 256))
    for k in range(wide.shape[1]):
        lanes[:, k % 256] += wide[:, k].astype(np.float64) ** 2
    while lanes.shape[1] > 1:
        lanes = lanes[:, : lanes.shape[1] // 2] + lanes[:, lanes.shape[1] // 2 :]
    factor = (1.0 / np.sqrt(lanes / wide.shape[1] + eps)).astype(np.float32)
    return torch.from_numpy(wide * factor * w)


@helpers.each("k", [1, 3, 63, 64, 65, 255, 256, 257, 1000])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_act_quantize_of_a_norm_equals_formula(forced: str, dtype: torch.dtype, k: int) -> None:
    x, weight = helpers.randn(5, k, dtype=dtype) * 7, helpers.randn(k, seed=1, dtype=helpers.FLOATS[k % 3])
    x[1] = 0
    y = _normed(x, weight, 1e-6)
    for bits in (8, 16, 24):
        expected = _expected(y) if bits == 8 else _expected_digits(y, bits)
        for run in (ops.act_quantize, reference.act_quantize):
            for actual, value in zip(run(x, bits, norm_weight=weight, norm_eps=1e-6), expected, strict=True):
                helpers.assert_same_bits(actual, value)


@pytest.mark.parametrize("k", [64, 6912])
def test_act_quantize_of_a_norm_is_near_that_of_torch(forced: str, k: int) -> None:
    x, weight = helpers.randn(9, k), helpers.randn(k, seed=1)
    q, scale = ops.act_quantize(x, 24, norm_weight=weight)
    code = sum(q[:, d].double() * 256**d for d in range(3))
    exact = torch.nn.functional.rms_norm(x.double(), (k,), weight.double(), 1e-5)
    # Half a step of 24 bits, and the roundings of the factor and of two products in float32.
    largest = exact.abs().amax() / exact.square().mean().sqrt()
    helpers.assert_near((code * scale).float(), exact, 0.5 * largest.item() / (127 * 65793) + 2e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_act_quantize_of_a_norm_of_a_non_finite_row(forced: str, value: float) -> None:
    x, weight = helpers.randn(3, 70), torch.ones(70)
    clean = ops.act_quantize(x, norm_weight=weight)
    x[1, 66] = value
    q, scale = ops.act_quantize(x, norm_weight=weight)
    assert scale[1].isnan()
    assert not q[1].any()
    for actual, value_of in zip((q[::2], scale[::2]), (clean[0][::2], clean[1][::2]), strict=True):
        assert torch.equal(actual, value_of)


def test_act_quantize_of_a_norm_of_0_columns() -> None:
    q, scale = ops.act_quantize(torch.zeros(2, 0), norm_weight=torch.zeros(0))
    expected = reference.act_quantize(torch.zeros(2, 0), norm_weight=torch.zeros(0))
    assert q.shape == (2, 0)
    assert torch.equal(scale, expected[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"norm_weight": torch.ones(4)}, ValueError, r"norm_weight must be \(3,\), one a column of x, got \[4\]"),
        ({"norm_weight": torch.ones(1, 3)}, ValueError, r"norm_weight must be \(3,\), .* got \[1, 3\]"),
        ({"norm_weight": torch.ones(3, dtype=torch.int8)}, TypeError, "norm_weight must be float32"),
        ({"norm_weight": torch.ones(3), "norm_eps": 0.0}, ValueError, "norm_eps must be positive and finite, got 0"),
        ({"norm_weight": torch.ones(3), "norm_eps": float("nan")}, ValueError, "norm_eps must be positive and finite"),
        ({"norm_weight": torch.ones(3, device="meta")}, RuntimeError, "x is on cpu but norm_weight is on meta"),
    ],
    ids=["length", "dimensions", "int8", "eps 0", "eps nan", "device"],
)
def test_act_quantize_refuses_a_bad_norm(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.act_quantize(torch.ones(2, 3), **arguments)


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


def test_act_quantize_of_a_norm_passes_opcheck() -> None:
    operands = helpers.randn(2, 3, 9), 8, helpers.randn(9, seed=1), 1e-5
    torch.library.opcheck(torch.ops.bittorch.act_quantize.default, operands)
