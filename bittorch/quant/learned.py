"""Quantisers whose scale is a parameter: lsq, seq and ttq.

With ``v = w / a`` and ``a`` the learned step of a tensor, row or group:

====  ======================================  =========  =========================
rule  code                                    scale      gradient reaches w where
====  ======================================  =========  =========================
lsq   ``sign(w)`` where ``|v| > 1/2``         ``a``      ``|v| < 1``
seq   ``sign(w)`` where ``|v| > 1/3``         ``a/1.5``  ``|v| < 0.99``
====  ======================================  =========  =========================

Both are ``round`` of a clipped, stretched ``v``, half to even; seq is ``round(clip(v, -0.99, 0.99) * 1.5) / 1.5 * a``.
``dQ/da = code * scale / a - v`` inside the clip, without ``v`` beyond it, divided by ``sqrt(weights that share a)``.

ttq has two learned scales, ``p`` of the positive codes and ``n`` of the negative ones, and a threshold of
``threshold_factor * max|w|``; no packed row holds two scales, so it trains but does not export.

Sources: Esser et al. 2020 (LSQ), Liu et al. 2025 (ParetoQ: stretched elastic quantisation), Zhu et al. 2017 (TTQ).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bittorch.ops.reference import EPS


class _Rule(NamedTuple):
    threshold: float  # of |v|
    level: float  # scale / a
    clip: float  # of |v|


def _rule(method: str) -> _Rule:
    """Numbers in code are constants of a compiled graph; those of a table are inputs where all is dynamic, and
    torch.compile then fails at the second layer."""
    return _Rule(0.5, 1.0, 1.0) if method == "lsq" else _Rule(1 / 3, 1 / 1.5, 0.99)


RULES = {method: _rule(method) for method in ("lsq", "seq")}
TWO_SCALES = "ttq"
LEARNED = (*RULES, TWO_SCALES)


def _blocks(w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The weights that share a scale as rows, and the scales as a column."""
    rows = scale.numel()
    return w.reshape(rows, w.numel() // rows if rows else 0), scale.reshape(rows, 1)


def initial_step(method: str, ls_scale: Tensor) -> Tensor:
    """The step whose scale is the least-squares one of a good fixed rule."""
    return ls_scale / _rule(method).level


def _codes(w: Tensor, threshold: Tensor) -> Tensor:
    return (w > threshold).to(torch.int8) - (w < -threshold).to(torch.int8)


def _positive(step: Tensor) -> Tensor:
    return step.float().abs().clamp_min(EPS)


def quantize_packed(w: Tensor, step: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Packed codes and scales of lsq or seq; a block that is not finite has scale NaN, so that it is not lost."""
    rule = _rule(method)
    a = _positive(step.detach())
    rows, column = _blocks(w.detach().float(), a)
    codes = _codes(rows, column * rule.threshold).view(w.shape)
    scale = a * rule.level + (rows * 0).sum(1).view(a.shape)
    return torch.ops.bittorch.ternary_pack.default(codes, False), scale


class _Route(torch.autograd.Function):
    """Takes the place of the dense quantised weight, without its value: backward gives its gradient to w and a."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, a: Tensor, method: str) -> Tensor:
        return w.view_as(w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        w, a, ctx.method = inputs
        ctx.save_for_backward(w, a)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        w, a = ctx.saved_tensors
        rule = _rule(ctx.method)
        g, _ = _blocks(grad.float(), a)
        rows, column = _blocks(w.float(), a)
        v = rows / column
        inside = v.abs() < rule.clip
        slope = _codes(v, torch.full_like(column, rule.threshold)) * rule.level - torch.where(inside, v, 0)
        grad_a = (g * slope).sum(1) / max(1, v.shape[1]) ** 0.5
        return torch.where(inside, g, 0).view(w.shape).to(w.dtype), grad_a.view(a.shape), None


def route(w: Tensor, step: Tensor, method: str) -> Tensor:
    """What `ternary_linear_ste` takes as weight: its gradient becomes those of ``w`` and ``step``."""
    if not torch.is_grad_enabled():  # calling an autograd.Function of this form takes longer than a small product
        return w
    routed: Tensor = _Route.apply(w, _positive(step), method)
    return routed


class _Clipped(torch.autograd.Function):
    """The identity, whose gradient is zero where ``|w| > 1.5 scale``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, scale: Tensor) -> Tensor:
        return w.view_as(w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        w, scale = ctx.saved_tensors
        rows, column = _blocks(w, scale)
        return grad * (rows.abs() <= 1.5 * column).view(w.shape), None


def clipped(w: Tensor, scale: Tensor) -> Tensor:
    """``w``, whose gradient stops where the codes do: beyond 1.5 scale, half a step past the last level."""
    if not torch.is_grad_enabled():
        return w
    result: Tensor = _Clipped.apply(w, scale)
    return result


class _TwoScales(torch.autograd.Function):
    """The dense weight of ttq."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, scales: Tensor, codes: Tensor) -> Tensor:
        (rows, positive), (_, negative) = _blocks(codes, scales[0]), _blocks(codes, scales[1])
        return (torch.where(rows > 0, positive, -negative) * rows.abs()).view(w.shape).to(w.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        w, scales, codes = inputs
        ctx.save_for_backward(codes, scales)
        ctx.dtype = w.dtype

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        codes, scales = ctx.saved_tensors
        g, positive = _blocks(grad.float(), scales[0])
        rows, negative = _blocks(codes, scales[1])
        sums = torch.stack([(g * (rows > 0)).sum(1), -(g * (rows < 0)).sum(1)]) / max(1, g.shape[1]) ** 0.5
        slope = torch.where(rows > 0, positive, torch.where(rows < 0, negative, 1.0))
        return (g * slope).view(grad.shape).to(ctx.dtype), sums.view(scales.shape), None


def two_scales(w: Tensor, scales: Tensor, threshold_factor: float) -> Tensor:
    """The dense weight of ttq, ``p`` and ``-n`` where the codes are +1 and -1.

    ``w`` gets the gradient of the weight times ``p``, 1 or ``n``, as in the paper; the scales the sums over their
    codes, divided as for the other rules: whole sums would want a learning rate of their own. A block that is not
    finite is NaN.
    """
    positive = _positive(scales)
    rows, _ = _blocks(w.detach().float(), positive[0])
    threshold = threshold_factor * rows.abs().amax(1, keepdim=True) if rows.numel() else rows
    broken = (rows * 0).sum(1).view(positive[0].shape)
    dense: Tensor = _TwoScales.apply(w, positive + broken, _codes(rows, threshold).view(w.shape))
    return dense
