import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from bittorch import ops
from bittorch.ops import reference
from tests import helpers
from tests.helpers import CHANNEL, GRANULARITIES, Granularity

OP = "ternary_linear_packed"
VARIANTS = helpers.variants(OP, torch.float32)
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Gradients are products of rounded halves, summed by torch's GEMM and cast once more.


def _args(granularity: Granularity = CHANNEL, method: str = "max") -> tuple[str, str, float, str, int]:
    factor = {"max": 0.05, "twn": 0.75, "absmean": 0.5, "absmedian": 0.5, "optimal": 0.0, "nm34": 0.0}[method]
    return method, "ls", factor, granularity.name, granularity.group


class _Problem:
    """A layer's tensors that all want gradients, and its straight-through gradients in float64."""

    def __init__(
        self,
        m: int = 5,
        n: int = 7,
        k: int = 128,
        granularity: Granularity = CHANNEL,
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
    ) -> None:
        self.args = _args(granularity)
        self.x = helpers.randn(m, k, dtype=dtype).requires_grad_()
        self.weight = helpers.randn(n, k, seed=2, dtype=dtype).requires_grad_()
        self.bias = helpers.randn(n, seed=3, dtype=dtype).requires_grad_() if bias else None
        packed, self.scale = ops.ternary_quantize(self.weight.detach(), *self.args)
        self.codes = ops.ternary_unpack(packed, None, k, torch.int8)
        self.packed = packed

    def run(self, activation_bits: int = 0, op: object = ops.ternary_linear) -> Tensor:
        return op(self.x, self.weight, self.bias, *self.args, activation_bits)

    def product(self, x: Tensor, activation_bits: int) -> Tensor:
        """What the op is made of, with the codes of the weight."""
        operands = x, self.packed, self.scale, self.bias
        if activation_bits == 0:
            return ops.ternary_linear_packed(*operands)
        return ops.ternary_linear_w2a8(*operands, activation_bits=activation_bits)

    def quantized_x(self, activation_bits: int) -> Tensor:
        x = self.x.detach()
        if activation_bits == 0:
            return x.double()
        return helpers.act_codes(x, activation_bits) * ops.act_quantize(x, activation_bits)[1].double()

    def exact_gradients(self, g: Tensor, activation_bits: int) -> dict[str, Tensor]:
        g = g.double()
        gradients = {
            "x": g @ helpers.dense(self.codes, self.scale),
            "weight": g.t() @ self.quantized_x(activation_bits),
        }
        return gradients if self.bias is None else {**gradients, "bias": g.sum(0)}


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("activation_bits", [0, 8, 16, 24])
@helpers.each("grad", [False, True], ids=["no grad", "grad"])
def test_linear_equals_quantize_then_product(
    granularity: Granularity, dtype: torch.dtype, activation_bits: int, grad: bool
) -> None:
    problem = _Problem(granularity=granularity, dtype=dtype)
    with torch.set_grad_enabled(grad):
        y = problem.run(activation_bits)
    assert y.requires_grad == grad
    assert torch.equal(y, problem.product(problem.x, activation_bits))


@pytest.mark.parametrize("method", ["max", "twn", "absmean", "absmedian", "optimal", "nm34"])
def test_linear_of_every_method_is_near_float64(method: str) -> None:
    x, w = helpers.randn(5, 100), helpers.randn(7, 100, seed=2)
    packed, scale = reference.ternary_quantize(w, *_args(method=method))
    quantized = reference.ternary_unpack(packed, scale, 100, torch.float32)
    y = ops.ternary_linear(x, w, None, *_args(method=method))
    helpers.assert_near(y, linear(x.double(), quantized.double()))
    helpers.assert_near(reference.ternary_linear(x, w, None, *_args(method=method)), y.double())


@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("activation_bits", [0, 8, 16, 24])
@helpers.each("bias", [False, True], ids=["no bias", "bias"])
def test_linear_gradients_are_straight_through(
    granularity: Granularity, dtype: torch.dtype, activation_bits: int, bias: bool
) -> None:
    for op in (ops.ternary_linear, reference.ternary_linear):
        problem = _Problem(granularity=granularity, dtype=dtype, bias=bias)
        g = helpers.randn(5, 7, seed=9, dtype=dtype)
        problem.run(activation_bits, op).backward(g)
        for name, exact in problem.exact_gradients(g, activation_bits).items():
            grad = getattr(problem, name).grad
            assert grad.dtype == dtype, name
            helpers.assert_near(grad, exact, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_gradient_of_x_is_float32_grade_over_many_outputs(activation_bits: int) -> None:
    problem = _Problem(m=70, n=1030, k=261)
    g = helpers.randn(70, 1030, seed=9) * helpers.randn(1030, seed=8).exp()
    problem.run(activation_bits).backward(g)
    helpers.assert_near(problem.x.grad, problem.exact_gradients(g, activation_bits)["x"], 1e-6)


def test_gradient_of_x_in_float16_has_the_range_of_its_result() -> None:
    """g * scale is below the smallest normal float16, their sum is not."""
    n, k = 2048, 64
    x = torch.zeros(2, k, dtype=torch.float16, requires_grad=True)
    weight = torch.full((n, k), 1e-3, dtype=torch.float16)
    ops.ternary_linear(x, weight, None, *_args()).backward(torch.full((2, n), 1e-4, dtype=torch.float16))
    helpers.assert_near(x.grad, torch.full((2, k), n * 1e-7, dtype=torch.float64), 2e-3)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_gradient_of_x_is_not_finite_where_that_of_y_is_not(value: float, activation_bits: int) -> None:
    problem = _Problem(m=3)
    g = torch.ones(3, 7)
    g[1, 2] = value
    problem.run(activation_bits).backward(g)
    finite = problem.x.grad.isfinite()
    assert finite.all(1).tolist() == [True, False, True]
    assert not finite[1].any()


@pytest.mark.parametrize("shape", [(20,), (0, 20), (2, 3, 20)], ids=str)
def test_linear_gradients_of_batch_shapes(shape: tuple[int, ...]) -> None:
    problem = _Problem(k=20)
    problem.x = helpers.randn(*shape).requires_grad_()
    g = helpers.randn(*shape[:-1], 7)
    problem.run().backward(g)
    flat, rows = g.double().reshape(-1, 7), problem.x.detach().double().reshape(-1, 20)
    helpers.assert_near(problem.x.grad, g.double() @ helpers.dense(problem.codes, problem.scale))
    helpers.assert_near(problem.weight.grad, flat.t() @ rows)
    helpers.assert_near(problem.bias.grad, flat.sum(0))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 5), (3, 0, 5), (3, 4, 0)], ids=str)
@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_linear_gradients_of_empty_sizes_are_zero_or_empty(m: int, n: int, k: int, activation_bits: int) -> None:
    problem = _Problem(m, n, k)
    problem.run(activation_bits).sum().backward()
    assert torch.equal(problem.x.grad, torch.zeros(m, k))
    assert torch.equal(problem.weight.grad, torch.zeros(n, k))
    assert torch.equal(problem.bias.grad, torch.full((n,), float(m)))


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_linear_gives_only_the_gradient_that_is_wanted(wanted: str, activation_bits: int) -> None:
    problem = _Problem()
    for name in ("x", "weight", "bias"):
        getattr(problem, name).requires_grad_(name == wanted)
    g = helpers.randn(5, 7, seed=9)
    problem.run(activation_bits).backward(g)
    for name, exact in problem.exact_gradients(g, activation_bits).items():
        grad = getattr(problem, name).grad
        if name == wanted:
            helpers.assert_near(grad, exact)
        else:
            assert grad is None


@pytest.mark.parametrize("bias_dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_linear_bias_keeps_its_own_dtype(bias_dtype: torch.dtype) -> None:
    problem = _Problem(dtype=torch.bfloat16)
    problem.bias = helpers.randn(7, dtype=bias_dtype).requires_grad_()
    y = problem.run()
    exact = linear(problem.x.double(), helpers.dense(problem.codes, problem.scale), problem.bias.double())
    helpers.assert_near(y, exact)
    y.backward(torch.ones_like(y))
    assert problem.bias.grad.dtype == bias_dtype
    assert torch.equal(problem.bias.grad, torch.full((7,), 5.0, dtype=bias_dtype))


def test_linear_gradient_accumulates_over_two_uses() -> None:
    problem = _Problem()
    (problem.run() + 2 * problem.run()).sum().backward()
    exact = problem.exact_gradients(torch.full((5, 7), 3.0), 0)
    helpers.assert_near(problem.weight.grad, exact["weight"])


@helpers.each("end", [torch.sum, lambda t: t.square().sum()], ids=["sum", "square"])
@helpers.each("of", ["x", "weight", "bias"])
@helpers.each("activation_bits", [0, 8, 16, 24])
@helpers.each("start", [torch.sum, lambda t: t.square().sum()], ids=["of sum", "of square"])
def test_linear_double_backward_raises(end: object, of: str, activation_bits: int, start: object) -> None:
    problem = _Problem()
    (grad,) = torch.autograd.grad(start(problem.run(activation_bits)), getattr(problem, of), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        end(grad).backward()


def test_linear_gradient_with_create_graph_is_usable() -> None:
    problem = _Problem()
    problem.run().sum().backward(create_graph=True)
    with torch.no_grad():
        problem.weight -= 0.1 * problem.weight.grad
    exact = problem.exact_gradients(torch.ones(5, 7), 0)["weight"]
    helpers.assert_near(problem.weight.grad.detach(), exact)


@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_linear_saves_codes_and_never_the_dense_weight(activation_bits: int) -> None:
    n, k, m = 64, 256, 3
    problem = _Problem(m, n, k)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        problem.run(activation_bits)
    sizes = [t.numel() * t.element_size() for t in saved]
    assert sum(sizes) <= n * k // 4 + 4 * n + m * k * (1 if activation_bits == 8 else 4) + 4 * m
    assert torch.uint8 in {t.dtype for t in saved}
    assert (torch.int8 in {t.dtype for t in saved}) == (activation_bits == 8)


def test_linear_does_not_save_x_for_a_frozen_weight() -> None:
    problem, saved = _Problem(50, 4, 256), []
    problem.weight.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        problem.run()
    assert all(t.numel() < problem.x.numel() for t in saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@pytest.mark.parametrize("activation_bits", [0, 8, 16, 24])
def test_linear_autocast_casts_x_only(dtype: torch.dtype, activation_bits: int) -> None:
    problem = _Problem()
    with torch.autocast("cpu", dtype=dtype):
        y = problem.run(activation_bits)
    assert y.dtype == dtype
    # The codes come from the float32 master weight, not from its cast.
    half = problem.x.detach().to(dtype)
    assert torch.equal(y, problem.product(half, activation_bits))
    g = helpers.randn(5, 7, seed=9, dtype=dtype)
    y.backward(g)
    exact = problem.exact_gradients(g, activation_bits)
    for name in ("x", "weight", "bias"):
        grad = getattr(problem, name).grad
        assert grad.dtype == torch.float32, name
        helpers.assert_near(grad, exact[name], 2 * GRADIENT_TOLERANCE[dtype])


def test_linear_autocast_accepts_x_that_is_cast_already() -> None:
    problem = _Problem()
    problem.x = problem.x.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert problem.run().dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=helpers.dtype_id)
def test_linear_refuses_x_of_another_dtype_with_both(dtype: torch.dtype) -> None:
    problem = _Problem()
    problem.x = problem.x.detach().to(dtype)
    with pytest.raises(RuntimeError, match=f"same dtype, got {dtype} and torch.float32"):
        problem.run()


@pytest.mark.parametrize("width", [125, 126, 127, 129, 4, 0])
def test_linear_refuses_x_of_another_width(width: int) -> None:
    """Also where packed rows have as many bytes."""
    problem = _Problem()
    for requires_grad in (True, False):
        problem.x = helpers.randn(2, width).requires_grad_(requires_grad)
        with pytest.raises(ValueError, match=f"128.*{width}"):
            problem.run()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, "mode", "method must be one of"),
        (1, "median", "scale must be one of"),
        (2, 2.0, r"threshold_factor must be in \[0, 1\], got 2"),
        (3, "row", "granularity must be one of"),
    ],
)
def test_linear_refuses_bad_arguments(position: int, value: object, message: str) -> None:
    problem, args = _Problem(), list(_args())
    args[position] = value
    with pytest.raises(ValueError, match=message):
        ops.ternary_linear(problem.x, problem.weight, None, *args)


@pytest.mark.parametrize("bits", [1, 4, 12, 32, -8])
def test_linear_refuses_other_activation_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"activation_bits must be 8, 16, 24, or 0 .*, got {bits}"):
        _Problem().run(bits)


def test_linear_of_every_kernel_gives_the_same_bits(variant: str) -> None:
    problem = _Problem()
    y = ops.ternary_linear(problem.x, problem.weight, problem.bias, *problem.args, variant=variant)
    assert torch.equal(y, problem.run())


@helpers.each("value", [float("nan"), float("inf")])
@helpers.each("activation_bits", [0, 8, 16, 24])
@helpers.each("granularity", [helpers.TENSOR, CHANNEL, Granularity("group", 64)], ids=str)
def test_linear_propagates_non_finite_weights(value: float, activation_bits: int, granularity: Granularity) -> None:
    problem = _Problem(granularity=granularity)
    with torch.no_grad():
        problem.weight[2, 100] = value
    nan = problem.run(activation_bits).isnan()
    assert nan[:, 2].all()
    assert nan.all() if granularity.name == "tensor" else nan.sum() == 5


@pytest.mark.parametrize(("activation_bits", "bias", "requires_grad"), helpers.pairs([0, 8, 16, 24]))
def test_linear_passes_opcheck(activation_bits: int, bias: bool, requires_grad: bool) -> None:
    problem = _Problem(3, 4, 16, Granularity("group", 8), bias=bias)
    tensors = [problem.x, problem.weight, problem.bias]
    if not requires_grad:
        tensors = [None if t is None else t.detach() for t in tensors]
    torch.library.opcheck(torch.ops.bittorch.ternary_linear.default, (*tensors, *problem.args, activation_bits))


def test_linear_with_functorch_grad_raises_clearly() -> None:
    problem = _Problem()

    def loss(weight: Tensor) -> Tensor:
        return ops.ternary_linear(problem.x.detach(), weight, None, *problem.args).sum()

    with pytest.raises(NotImplementedError, match=r"torch.func transforms .* backend='python'"):
        torch.func.grad(loss)(problem.weight.detach())


@pytest.mark.parametrize("op", ["linear", "packed", "w2a8"])
def test_forward_mode_raises_clearly(op: str) -> None:
    w = torch.randn(8, 16)
    packed = ops.ternary_quantize(w, "max", "ls", 0.05, "channel")
    run = {
        "linear": lambda x: ops.ternary_linear(x, w, None, "max", "ls", 0.05, "channel"),
        "packed": lambda x: ops.ternary_linear_packed(x, *packed),
        "w2a8": lambda x: ops.ternary_linear_w2a8(x, *packed),
    }[op]
    x = torch.randn(3, 16)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(run, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        run(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", ["w_packed", "scale", "bias"])
@pytest.mark.parametrize("op", [ops.ternary_linear_packed, ops.ternary_linear_w2a8])
def test_a_meta_tensor_among_real_ones_raises(op, name: str) -> None:
    w_packed, scale = ops.ternary_quantize(torch.randn(8, 16), "max", "ls", 0.05, "channel")
    tensors = {"w_packed": w_packed, "scale": scale, "bias": torch.zeros(8)}
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(RuntimeError, match=f"x is on cpu but {name} is on meta"):
        op(torch.randn(3, 16), **tensors)
