"""The learned quantisers against their papers' formulas, differentiated by torch in float64."""

import pytest
import torch
from torch import Tensor

import bittorch
from bittorch import ops
from bittorch.quant import learned
from tests import helpers

SHAPES = {"tensor": (1,), "channel": (6,), "group": (6, 3)}


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, v: Tensor) -> Tensor:
        return v.round()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _each(step: Tensor, w: Tensor) -> Tensor:
    """The step of every weight."""
    column = step[:, None] if step.dim() == 1 else step.repeat_interleave(w.shape[1] // step.shape[1], 1)
    return column.expand_as(w)


def _dense(method: str, w: Tensor, step: Tensor) -> Tensor:
    a = _each(step, w)
    if method == "lsq":
        return _Round.apply((w / a).clamp(-1, 1)) * a
    return _Round.apply((w / a).clamp(-0.99, 0.99) * 1.5) / 1.5 * a


def _problem(granularity: str) -> tuple[Tensor, Tensor]:
    w = helpers.randn(6, 24)
    step = helpers.randn(*SHAPES[granularity], seed=5).abs() + 0.5
    return w, step


@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("method", learned.RULES)
def test_codes_and_scale_are_those_of_the_formula(method: str, granularity: str) -> None:
    w, step = _problem(granularity)
    w_packed, scale = learned.quantize_packed(w, step, method)
    assert scale.shape == step.shape
    codes = ops.ternary_unpack(w_packed, None, 24, torch.int8)
    assert len(codes.unique()) == 3
    helpers.assert_near(helpers.dense(codes, scale).float(), _dense(method, w.double(), step.double()))


@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("method", learned.RULES)
def test_gradients_are_those_of_the_formula(method: str, granularity: str) -> None:
    w, step = _problem(granularity)
    g = helpers.randn(6, 24, seed=9)
    exact = w.double().requires_grad_(), step.double().requires_grad_()
    _dense(method, *exact).backward(g.double())
    ours = w.requires_grad_(), step.requires_grad_()
    learned.route(*ours, method).backward(g)
    assert (exact[0].grad == 0).any()
    helpers.assert_near(w.grad, exact[0].grad)
    helpers.assert_near(step.grad, exact[1].grad / (w.numel() / step.numel()) ** 0.5)


def test_half_way_and_the_clip() -> None:
    w = torch.tensor([[0.5, 0.500001, -0.5, -1.0, 1.0, 0.999]])
    step = torch.ones(1)
    packed, _ = learned.quantize_packed(w, step, "lsq")
    assert ops.ternary_unpack(packed, None, 6, torch.int8).tolist() == [[0, 1, 0, -1, 1, 1]]
    w.requires_grad_()
    learned.route(w, step, "lsq").sum().backward()
    assert w.grad.tolist() == [[1, 1, 1, 0, 0, 1]]


@pytest.mark.parametrize("method", learned.RULES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weight_that_is_not_finite_makes_its_scale_nan(method: str, value: float) -> None:
    w, step = _problem("channel")
    w[2, 3] = value
    _, scale = learned.quantize_packed(w, step, method)
    assert scale.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("step", [0.0, -0.7])
def test_step_that_left_the_positive_numbers(step: float) -> None:
    w = helpers.randn(4, 8)
    _, scale = learned.quantize_packed(w, torch.full((4,), step), "lsq")
    assert torch.equal(scale, torch.full((4,), max(abs(step), 1e-5)))


@pytest.mark.parametrize("granularity", SHAPES)
def test_ttq_has_two_scales_and_the_gradients_of_its_paper(granularity: str) -> None:
    w, step = _problem(granularity)
    scales = torch.stack([step, 2 * step])
    blocks = w.view(step.numel(), -1)
    threshold = (0.3 * blocks.abs().amax(1, keepdim=True)).expand_as(blocks).reshape(w.shape)
    p, n = _each(step, w), _each(2 * step, w)
    expected = torch.where(w > threshold, p, torch.where(w < -threshold, -n, 0))
    g = helpers.randn(6, 24, seed=9)
    w.requires_grad_(), scales.requires_grad_()
    dense = learned.two_scales(w, scales, 0.3)
    assert torch.equal(dense, expected)
    dense.backward(g)
    assert torch.equal(w.grad, g * torch.where(expected > 0, p, torch.where(expected < 0, n, 1)))
    positive = torch.where(expected > 0, g, 0).double().view(step.numel(), -1).sum(1).view(step.shape)
    negative = -torch.where(expected < 0, g, 0).double().view(step.numel(), -1).sum(1).view(step.shape)
    helpers.assert_near(scales.grad, torch.stack([positive, negative]) / (w.numel() / step.numel()) ** 0.5)


def test_clipped_gradient_stops_beyond_one_and_a_half_scales() -> None:
    w = torch.tensor([[1.5, 1.51, -1.5, -1.6], [3.0, 0.1, -3.1, 0.0]], requires_grad=True)
    learned.clipped(w, torch.tensor([1.0, 2.0])).backward(torch.full((2, 4), 2.0))
    assert w.grad.tolist() == [[2, 0, 2, 0], [2, 2, 0 if 3.1 > 3 else 2, 2]]


def test_quantiser_of_a_learned_method_raises() -> None:
    with pytest.raises(ValueError, match="'lsq' learns its scale"):
        bittorch.ternary_quantize(helpers.randn(2, 4), method="lsq")
