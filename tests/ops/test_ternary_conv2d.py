import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bittorch import TernaryQuantConfig, ops
from bittorch.ops import reference
from tests import helpers
from tests.ops.test_ternary_conv2d_packed import GEOMETRIES

BITS = (0, 8, 16, 24)
CONFIGS = {
    "tensor": TernaryQuantConfig(per_channel=False),
    "channel": TernaryQuantConfig(),
    "group": TernaryQuantConfig(granularity="group", group_size=4),
    "absmean": TernaryQuantConfig(method="absmean"),
}


class _Problem:
    """A master weight, a bias and an input of one geometry, which all want gradients."""

    def __init__(self, geometry: str, config: str = "channel", dtype: torch.dtype = torch.float32) -> None:
        channels, height, width, n, kernel, *steps, groups = GEOMETRIES[geometry]
        self.config, self.steps, self.groups = CONFIGS[config], steps, groups
        self.weight = helpers.randn(n, channels // groups, *kernel, seed=1, dtype=dtype).requires_grad_()
        self.bias = helpers.randn(n, seed=2, dtype=dtype).requires_grad_()
        self.x = helpers.randn(2, channels, height, width, dtype=dtype).requires_grad_()
        self.codes = ops.ternary_quantize(self.weight.detach().flatten(1), *self.config.op_args())

    def run(self, bits: int = 0, x: Tensor | None = None) -> Tensor:
        operands = self.x if x is None else x, self.weight, self.bias
        return ops.ternary_conv2d(*operands, *self.steps, self.groups, *self.config.op_args(), bits)

    def packed(self, bits: int) -> Tensor:
        kernel = self.weight.shape[2:]
        arguments = *self.codes, self.bias.detach(), kernel, *self.steps, self.groups
        return ops.ternary_conv2d_packed(self.x.detach(), *arguments, activation_bits=bits)


@helpers.each("config", CONFIGS)
@helpers.each("bits", BITS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_forward_is_that_of_the_packed_op(config: str, bits: int, dtype: torch.dtype) -> None:
    for geometry in ("depthwise", "1x1", "stride 2") if config != "group" else ("1x1", "stride 2"):
        problem = _Problem(geometry, config, dtype)
        y = problem.run(bits)
        assert y.requires_grad
        assert torch.equal(y, problem.packed(bits))
        with torch.no_grad():
            assert torch.equal(y, problem.run(bits))


@helpers.each("geometry", GEOMETRIES)
@helpers.each("bits", BITS)
def test_gradients_are_straight_through(geometry: str, bits: int) -> None:
    """Against conv2d in float64 of the quantised x and weight, whose gradients are those of x and weight."""
    problem = _Problem(geometry)
    y = problem.run(bits)
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)
    x = problem.x.detach().double()
    if bits:
        codes, scale = reference.act_codes(problem.x.detach().flatten(1), bits)
        x = (codes * scale.double()).view(x.shape)
    w_packed, scale = problem.codes
    rows = problem.weight.detach().flatten(1)
    weight = ops.ternary_unpack(w_packed, scale, rows.shape[1], torch.float32).view(problem.weight.shape).double()
    x.requires_grad_()
    weight.requires_grad_()
    functional.conv2d(x, weight, None, *problem.steps, problem.groups).backward(g.double())
    helpers.assert_near(problem.x.grad, x.grad)
    helpers.assert_near(problem.weight.grad, weight.grad)
    helpers.assert_near(problem.bias.grad, g.double().sum((0, 2, 3)))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("config", ["tensor", "channel", "group"])
def test_python_reference_agrees(bits: int, config: str) -> None:
    fast, slow = _Problem("stride 2", config), _Problem("stride 2", config)
    y = fast.run(bits)
    operands = slow.x, slow.weight, slow.bias, *slow.steps, slow.groups
    expected = reference.ternary_conv2d(*operands, *slow.config.op_args(), bits)
    helpers.assert_near(y, expected)
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)
    expected.backward(g)
    for name in ("x", "weight", "bias"):
        helpers.assert_near(getattr(fast, name).grad, getattr(slow, name).grad)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
@pytest.mark.parametrize("bits", BITS)
def test_single_gradients_equal_those_of_all(wanted: str, bits: int) -> None:
    whole, one = _Problem("3x3"), _Problem("3x3")
    whole.run(bits).square().sum().backward()
    for name in ("x", "weight", "bias"):
        getattr(one, name).requires_grad_(name == wanted)
    one.run(bits).square().sum().backward()
    helpers.assert_near(getattr(one, wanted).grad, getattr(whole, wanted).grad, 1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_nothing_of_the_size_of_the_weight_is_saved(bits: int) -> None:
    problem, saved = _Problem("many filters"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        problem.run(bits)
    kept = sum(t.nbytes for t in saved)
    x_bytes = problem.x.numel() * (1 if bits == 8 else 4) + 8
    assert kept <= x_bytes + problem.weight.numel() // 4 + 4 * len(problem.weight) + 8


def test_double_backward_raises() -> None:
    problem = _Problem("3x3")
    (grad,) = torch.autograd.grad(problem.run().square().sum(), problem.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_forward_mode_is_refused() -> None:
    problem = _Problem("3x3")
    x = problem.x.detach()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            problem.run(x=dual)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@pytest.mark.parametrize("bits", [0, 8])
def test_autocast_gives_float32_gradients_of_the_weight(dtype: torch.dtype, bits: int) -> None:
    problem = _Problem("3x3")
    with torch.autocast("cpu", dtype=dtype):
        y = problem.run(bits)
    assert y.dtype == dtype
    y.sum().backward()
    assert problem.weight.grad.dtype == problem.bias.grad.dtype == problem.x.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 3, 5, 5).half(), RuntimeError, "must have the same dtype, got torch.float16 and torch.float32"),
        (torch.zeros(1, 3, 5, 5, dtype=torch.int64), RuntimeError, "got torch.int64 and torch.float32"),
        (torch.zeros(1, 3, 5, 5, dtype=torch.complex64), RuntimeError, "got torch.complex64 and torch.float32"),
        (torch.zeros(1, 4, 5, 5), ValueError, r"x must be \(samples, 3, height, width\).*got \(1, 4, 5, 5\)"),
        (torch.zeros(3, 5, 5), ValueError, r"x must be \(samples, 3, height, width\).*got \(3, 5, 5\)"),
    ],
)
def test_bad_input_is_refused(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _Problem("3x3").run(x=x)


@pytest.mark.parametrize("bits", BITS)
def test_op_passes_opcheck(bits: int) -> None:
    problem = _Problem("all different")
    operands = problem.x, problem.weight, problem.bias, *problem.steps, problem.groups
    op = torch.ops.bittorch.ternary_conv2d.default
    torch.library.opcheck(op, (*operands, *problem.config.op_args()), {"activation_bits": bits})
