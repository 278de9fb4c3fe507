import itertools

import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers
from tests.helpers import GRANULARITIES, Granularity

OP = "ternary_linear_w2a8"
VARIANTS = helpers.variants(OP)
BITS = (8, 16, 24)


class _Problem(helpers.PackedWeights):
    def run(self, x: Tensor, variant: str = "auto", **arguments: object) -> Tensor:
        return ops.ternary_linear_w2a8(x, self.packed, self.scale, self.bias, variant=variant, **arguments)

    def expected(self, q: Tensor, x_scale: Tensor, dtype: torch.dtype) -> Tensor:
        return helpers.product_of_codes(q, x_scale, self.codes, self.scale, self.bias, dtype)

    def expected_of(self, x: Tensor, bits: int = 8) -> Tensor:
        return self.expected(helpers.act_codes(x, bits), ops.act_quantize(x, bits)[1], x.dtype)


def _assert_all_variants(problem: _Problem, x: Tensor) -> None:
    for bits in BITS:
        expected = problem.expected_of(x, bits)
        operands = x, problem.packed, problem.scale, problem.bias
        helpers.assert_same_bits(reference.ternary_linear_w2a8(*operands, activation_bits=bits), expected)
        for variant in VARIANTS:
            helpers.assert_same_bits(problem.run(x, variant, activation_bits=bits), expected)


@helpers.each("k", [*helpers.EDGE_SIZES, 1000])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_w2a8_equals_integers_at_edge_sizes_of_k(dtype: torch.dtype, k: int) -> None:
    problem = _Problem(6, k, bias=torch.float32)
    for m in (1, 3):
        _assert_all_variants(problem, helpers.randn(m, k, dtype=dtype))


@pytest.mark.parametrize("size", helpers.EDGE_SIZES)
def test_w2a8_equals_integers_at_edge_sizes_of_n_and_m(size: int) -> None:
    _assert_all_variants(_Problem(size, 37), helpers.randn(2, 37))
    _assert_all_variants(_Problem(5, 37), helpers.randn(size, 37))


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("bias", [None, *helpers.FLOATS], ids=helpers.dtype_id)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_w2a8_with_every_granularity_and_bias(
    granularity: Granularity, bias: torch.dtype | None, dtype: torch.dtype
) -> None:
    _assert_all_variants(_Problem(9, 320, granularity, bias), helpers.randn(7, 320, dtype=dtype))


@pytest.mark.parametrize(
    ("k", "value"),
    helpers.slow_but(
        [(255, 127), (256, -127), (16384, -128)], itertools.product([255, 256, 4096, 16384], [127, -127, -128])
    ),
)
@helpers.each("weights", ["plus", "minus", "alternating", "zero"])
def test_w2a8_of_extreme_codes_is_exact(variant: str, k: int, value: int, weights: str) -> None:
    """The largest partial sums: where a narrow accumulator would wrap or saturate."""
    sign = {"plus": 1, "minus": -1, "zero": 0}.get(weights)
    codes = torch.tensor([1, -1]).repeat(k)[:k] if sign is None else torch.full((k,), sign)
    q = torch.full((3, k), value, dtype=torch.int8)
    y = ops.ternary_linear_w2a8(
        q,
        helpers.pack(codes.to(torch.int8).expand(5, k)),
        torch.ones(5),
        x_scale=torch.ones(3),
        out_dtype=torch.float32,
        variant=variant,
    )
    assert torch.equal(y, torch.full((3, 5), float(value * int(codes.sum()))))


def test_w2a8_of_alternating_extremes_is_exact(variant: str) -> None:
    k = 2048
    q = torch.tensor([127, -128], dtype=torch.int8).repeat(k // 2)[None]
    codes = torch.tensor([1, -1], dtype=torch.int8).repeat(k // 2)[None]
    y = ops.ternary_linear_w2a8(
        q, helpers.pack(codes), torch.ones(1), x_scale=torch.ones(1), out_dtype=torch.float32, variant=variant
    )
    assert y.item() == 255 * k // 2


@pytest.mark.parametrize("k", [8, 12, 260, 512])
def test_w2a8_uses_the_scale_of_each_group(variant: str, k: int) -> None:
    groups = k // 4
    scale = 2.0 ** torch.arange(3 * groups).view(3, groups).remainder(13)
    q = torch.eye(k).to(torch.int8)
    y = ops.ternary_linear_w2a8(
        q,
        helpers.pack(torch.ones(3, k, dtype=torch.int8)),
        scale,
        x_scale=torch.ones(k),
        out_dtype=torch.float32,
        variant=variant,
    )
    assert torch.equal(y, scale.repeat_interleave(4, 1).t())


def test_w2a8_epilogue_is_not_fused(variant: str) -> None:
    """Data on which a fused multiply-add gives other bits."""
    problem = _Problem(64, 200, bias=torch.float32)
    q, x_scale = ops.act_quantize(helpers.randn(20, 200))
    expected = problem.expected(q, x_scale, torch.float32)
    sums = q.double() @ problem.codes.double().t()
    fused = (sums * (x_scale * problem.scale).double() + problem.bias.double()).float()
    assert not torch.equal(fused, expected)
    assert torch.equal(problem.run(q, variant, x_scale=x_scale, out_dtype=torch.float32), expected)


@helpers.each("out_dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("shape", [(70,), (5, 70), (2, 3, 70)], ids=str)
def test_w2a8_of_codes_equals_that_of_activations(variant: str, out_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    problem, x = _Problem(9, 70, bias=torch.float16), helpers.randn(*shape)
    q, x_scale = ops.act_quantize(x)
    y = problem.run(q, variant, x_scale=x_scale, out_dtype=out_dtype)
    assert torch.equal(y, problem.expected(q, x_scale, out_dtype))
    assert torch.equal(y, problem.run(x, variant, out_dtype=out_dtype))
    assert torch.equal(y, problem.run(q, variant, x_scale=x_scale.flatten(), out_dtype=out_dtype))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3), (0, 3), (2, 0, 3)], ids=str)
def test_w2a8_keeps_batch_shape(variant: str, shape: tuple[int, ...]) -> None:
    problem, x = _Problem(4, 3, bias=torch.float32), helpers.randn(*shape)
    y = problem.run(x, variant)
    assert y.shape == (*shape[:-1], 4)
    assert torch.equal(y, problem.expected_of(x))


def test_w2a8_of_0_features_is_the_bias(variant: str) -> None:
    problem = _Problem(4, 0, bias=torch.float32)
    assert torch.equal(problem.run(torch.zeros(3, 0), variant), problem.bias.expand(3, 4))


@helpers.each("layout", helpers.LAYOUTS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_w2a8_of_layouts_equals_contiguous(variant: str, layout: str, dtype: torch.dtype) -> None:
    rearranged = helpers.LAYOUTS[layout]
    problem, x = _Problem(9, 72, Granularity("group", 8), dtype), helpers.randn(5, 72, dtype=dtype)
    expected = problem.run(x, variant)
    operands = rearranged(problem.packed), rearranged(problem.scale), rearranged(problem.bias)
    assert torch.equal(ops.ternary_linear_w2a8(rearranged(x), *operands, variant=variant), expected)
    q, x_scale = ops.act_quantize(x)
    y = ops.ternary_linear_w2a8(rearranged(q), *operands, x_scale=rearranged(x_scale), out_dtype=dtype, variant=variant)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_w2a8_row_of_a_batch_equals_the_row_alone(variant: str, granularity: Granularity) -> None:
    problem, x = _Problem(33, 320, granularity, torch.float32), helpers.randn(67, 320)
    for bits in BITS:
        batch = problem.run(x, variant, activation_bits=bits)
        for row in (0, 1, 5, 31, 64, 66):
            assert torch.equal(problem.run(x[row], variant, activation_bits=bits), batch[row])


def test_w2a8_beyond_the_scratch_block_equals_its_parts(variant: str) -> None:
    problem, x = _Problem(3, 20), helpers.randn(8200, 20)
    for bits in (24, 16, 8):
        parts = [problem.run(part, variant, activation_bits=bits) for part in x.split(1000)]
        assert torch.equal(problem.run(x, variant, activation_bits=bits), torch.cat(parts))
    q, x_scale = ops.act_quantize(x)
    assert torch.equal(problem.run(q, variant, x_scale=x_scale, out_dtype=torch.float32), torch.cat(parts))


@pytest.mark.parametrize("shape", [(1, 600, 1024), (300, 70, 512)], ids=["one token", "batch"])
def test_w2a8_with_two_threads_equals_one(variant: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    problem, x = _Problem(n, k, bias=torch.float32), helpers.randn(m, k)
    for bits in BITS:
        with helpers.threads(1):
            one = problem.run(x, variant, activation_bits=bits)
        with helpers.threads(2):
            two = problem.run(x, variant, activation_bits=bits)
        assert torch.equal(one, two)
        assert torch.equal(one, problem.expected_of(x, bits))


@helpers.each("value", [float("nan"), float("inf"), float("-inf")])
@helpers.each("granularity", GRANULARITIES, ids=str)
def test_w2a8_of_non_finite_token_is_a_row_of_nan(variant: str, value: float, granularity: Granularity) -> None:
    problem, x = _Problem(6, 64, granularity, torch.float32), helpers.randn(3, 64)
    dirty = x.clone()
    dirty[1, 40] = value
    for bits in BITS:
        clean = problem.run(x, variant, activation_bits=bits)
        y = problem.run(dirty, variant, activation_bits=bits)
        assert y[1].isnan().all()
        assert torch.equal(y[::2], clean[::2])


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (16, 1e-4), (24, 2.5e-7)])
def test_w2a8_is_near_the_floating_product(variant: str, bits: int, tolerance: float) -> None:
    """The errors that docs/reference/ops.md states for Gaussian activations."""
    problem, x = _Problem(50, 1000), helpers.randn(20, 1000)
    exact = x.double() @ helpers.dense(problem.codes, problem.scale).t()
    helpers.assert_near(problem.run(x, variant, activation_bits=bits), exact, tolerance)


def test_24_bits_are_as_near_as_float32(variant: str) -> None:
    problem, x = _Problem(200, 4096), helpers.randn(8, 4096)
    dense = helpers.dense(problem.codes, problem.scale)
    exact = x.double() @ dense.t()
    error = (problem.run(x, variant, activation_bits=24) - exact).norm()
    assert error <= (torch.nn.functional.linear(x, dense.float()) - exact).norm()


@helpers.each("bits", [16, 24])
@helpers.each("magnitude", [1e-44, 1e-30, 1.0, 3e38])
def test_digits_of_any_magnitude(variant: str, bits: int, magnitude: float) -> None:
    problem, x = _Problem(5, 300), helpers.randn(4, 300)
    x = x / x.abs().amax() * magnitude
    x[2] = 0
    y = problem.run(x, variant, activation_bits=bits)
    helpers.assert_same_bits(y, problem.expected_of(x, bits))
    assert not y[2].any()


# Gradients


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bias", [None, torch.float32], ids=["no bias", "bias"])
def test_w2a8_gradients_are_straight_through(granularity: Granularity, bias: torch.dtype | None) -> None:
    problem, x = _Problem(6, 128, granularity, bias), helpers.randn(2, 3, 128).requires_grad_()
    g = helpers.randn(2, 3, 6, seed=9)
    if problem.bias is not None:
        problem.bias.requires_grad_()
    problem.run(x).backward(g)
    helpers.assert_near(x.grad, g.double() @ helpers.dense(problem.codes, problem.scale))
    if problem.bias is not None:
        helpers.assert_near(problem.bias.grad, g.double().sum((0, 1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_w2a8_gradient_has_the_dtype_of_x(dtype: torch.dtype) -> None:
    problem, x = _Problem(6, 8, bias=torch.float32), helpers.randn(3, 8, dtype=dtype).requires_grad_()
    problem.run(x, out_dtype=torch.float32).sum().backward()
    assert x.grad.dtype == dtype
    exact = helpers.dense(problem.codes, problem.scale).sum(0).expand(3, 8)
    helpers.assert_near(x.grad, exact, 1e-2)


@pytest.mark.parametrize("end", [torch.sum, lambda t: t.square().sum()], ids=["sum", "square"])
def test_w2a8_double_backward_raises(end: object) -> None:
    problem, x = _Problem(6, 9), helpers.randn(2, 9).requires_grad_()
    (grad,) = torch.autograd.grad(problem.run(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        end(grad).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_w2a8_autocast_casts_floating_x_only(dtype: torch.dtype) -> None:
    problem, x = _Problem(6, 70, bias=torch.float32), helpers.randn(3, 70)
    q, x_scale = ops.act_quantize(x)
    with torch.autocast("cpu", dtype=dtype):
        y = problem.run(x)
        from_codes = problem.run(q, x_scale=x_scale, out_dtype=torch.float32)
    assert torch.equal(y, problem.run(x.to(dtype)))
    assert torch.equal(from_codes, problem.run(x))


# A norm in front


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_w2a8_of_a_norm_equals_that_of_its_codes(dtype: torch.dtype, granularity: Granularity) -> None:
    problem, x = _Problem(9, 320, granularity, torch.float32), helpers.randn(7, 320, dtype=dtype)
    norm = {"norm_weight": helpers.randn(320, seed=1, dtype=torch.bfloat16), "norm_eps": 1e-6}
    for bits in BITS:
        digits, x_scale = ops.act_quantize(x, bits, **norm)
        if bits > 8:
            digits = sum(digits[:, d].int() * 256**d for d in range(bits // 8))
        expected = problem.expected(digits, x_scale, dtype)
        operands = x, problem.packed, problem.scale, problem.bias
        helpers.assert_same_bits(reference.ternary_linear_w2a8(*operands, activation_bits=bits, **norm), expected)
        for variant in VARIANTS:
            helpers.assert_same_bits(problem.run(x, variant, activation_bits=bits, **norm), expected)


def test_w2a8_of_a_norm_with_two_threads_equals_one() -> None:
    problem, x, weight = _Problem(70, 512), helpers.randn(300, 512), helpers.randn(512, seed=1)
    with helpers.threads(1):
        one = problem.run(x, norm_weight=weight)
    with helpers.threads(2):
        assert torch.equal(problem.run(x, norm_weight=weight), one)
    assert torch.equal(problem.run(x[7], norm_weight=weight), one[7])


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("bias", [None, torch.float32], ids=["no bias", "bias"])
@pytest.mark.parametrize("of", ["x", "norm", "both"])
def test_w2a8_gradients_go_through_the_norm(dtype: torch.dtype, bias: torch.dtype | None, of: str) -> None:
    problem, x = _Problem(6, 128, bias=bias), helpers.randn(2, 3, 128, dtype=dtype) * 3
    weight, g = helpers.randn(128, seed=1), helpers.randn(2, 3, 6, seed=9, dtype=dtype)
    wide = {"x": x.double().requires_grad_(), "norm": weight.double().requires_grad_()}
    normed = torch.nn.functional.rms_norm(wide["x"], (128,), wide["norm"], 1e-5)
    (normed @ helpers.dense(problem.codes, problem.scale).t()).backward(g.double())
    leaves = {"x": x.requires_grad_(of != "norm"), "norm": weight.requires_grad_(of != "x")}
    if problem.bias is not None:
        problem.bias.requires_grad_()
    problem.run(x, norm_weight=weight).backward(g)
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad.dtype == leaf.dtype
            helpers.assert_near(leaf.grad, wide[name].grad, 1e-5 if dtype == torch.float32 else 2e-2)
        else:
            assert leaf.grad is None
    if problem.bias is not None:
        helpers.assert_near(problem.bias.grad, g.double().sum((0, 1)), 1e-5 if dtype == torch.float32 else 1e-2)


def test_w2a8_of_a_norm_passes_opcheck() -> None:
    problem, x = _Problem(6, 16, bias=torch.float32), helpers.randn(2, 16).requires_grad_()
    op = torch.ops.bittorch.ternary_linear_w2a8.default
    norm = {"norm_weight": helpers.randn(16, seed=1).requires_grad_(), "norm_eps": 1e-6}
    torch.library.opcheck(op, (x, problem.packed, problem.scale, problem.bias), norm)


# Arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_scale": torch.ones(2)}, ValueError, "x_scale goes with int8 x only"),
        ({"x": torch.zeros(2, 8, dtype=torch.int8)}, ValueError, "int8 x needs x_scale and out_dtype"),
        (
            {"x": torch.zeros(2, 8, dtype=torch.int8), "x_scale": torch.ones(2)},
            ValueError,
            "int8 x needs x_scale and out_dtype",
        ),
        (
            {"x": torch.zeros(2, 8, dtype=torch.int8), "x_scale": torch.ones(3), "out_dtype": torch.float32},
            ValueError,
            r"one scale a token, 2, got \[3\]",
        ),
        (
            {"x": torch.zeros(2, 8, dtype=torch.int8), "x_scale": torch.ones(2).half(), "out_dtype": torch.float32},
            TypeError,
            "x_scale must be float32",
        ),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype must be"),
        ({"out_dtype": torch.float64}, TypeError, "out_dtype must be"),
        ({"x": torch.zeros(2, 12)}, ValueError, "for in_features=12"),
        ({"x": torch.zeros(2, 8).double()}, TypeError, "x must be float32"),
        ({"scale": torch.ones(4, 3)}, ValueError, "3 groups a row"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must be \(4,\)"),
        ({"activation_bits": 4}, ValueError, "activation_bits must be 8, 16 or 24, got 4"),
        (
            {
                "x": torch.zeros(2, 8, dtype=torch.int8),
                "x_scale": torch.ones(2),
                "out_dtype": torch.float32,
                "activation_bits": 16,
            },
            ValueError,
            "int8 x holds codes of 8 bits, but activation_bits is 16",
        ),
        ({"norm_weight": torch.ones(9)}, ValueError, r"norm_weight must be \(8,\), one a column of x, got \[9\]"),
        ({"norm_weight": torch.ones(8), "norm_eps": -1.0}, ValueError, "norm_eps must be positive and finite, got -1"),
        (
            {
                "x": torch.zeros(2, 8, dtype=torch.int8),
                "x_scale": torch.ones(2),
                "out_dtype": torch.float32,
                "norm_weight": torch.ones(8),
            },
            TypeError,
            "x with norm_weight must be float32, float16 or bfloat16, got int8",
        ),
        ({"variant": "nosuch"}, ValueError, "no kernel 'nosuch' here; one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_w2a8_refuses_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"x": torch.zeros(2, 8), "w_packed": torch.zeros(4, 2, dtype=torch.uint8), "scale": torch.ones(4)}
    ops.ternary_linear_w2a8(**good)
    with pytest.raises(error, match=message):
        ops.ternary_linear_w2a8(**{**good, **change})


def test_w2a8_refuses_sums_that_leave_int32() -> None:
    k = (1 << 22) + 4
    with pytest.raises(ValueError, match=f"in_features must be at most {1 << 22} .* got {k}"):
        ops.ternary_linear_w2a8(torch.zeros(1, k), torch.zeros(1, k // 4, dtype=torch.uint8), torch.ones(1))


@pytest.mark.parametrize(("bits", "bias", "requires_grad"), helpers.pairs(BITS))
def test_w2a8_passes_opcheck(bits: int, bias: bool, requires_grad: bool) -> None:
    problem = _Problem(6, 16, Granularity("group", 8), torch.float32 if bias else None)
    x = helpers.randn(2, 16).requires_grad_(requires_grad)
    op = torch.ops.bittorch.ternary_linear_w2a8.default
    torch.library.opcheck(op, (x, problem.packed, problem.scale, problem.bias), {"activation_bits": bits})


def test_w2a8_of_codes_passes_opcheck() -> None:
    problem, (q, x_scale) = _Problem(6, 16), ops.act_quantize(helpers.randn(2, 16))
    op = torch.ops.bittorch.ternary_linear_w2a8.default
    arguments = {"x_scale": x_scale, "out_dtype": torch.bfloat16}
    torch.library.opcheck(op, (q, problem.packed, problem.scale, None), arguments)
