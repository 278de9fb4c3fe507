"""Ternary layers in training, in plain torch: the values of the products, gradients straight through."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import conv2d_out_sizes
from bittorch.ops.reference.packed import ternary_unpack
from bittorch.ops.reference.quantize import act_codes, ternary_quantize


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """``value`` in the forward pass, with the gradient of ``source``; forward mode, vmap and fx see plain torch.

    What is added is exactly zero, so that ``value`` is not rounded once more; where ``source`` is not finite, no
    gradient passes.
    """
    return value + (source - source.detach()).nan_to_num(0.0)


def fake_quantize(x: Tensor, activation_bits: int) -> Tensor:
    """The codes of ``x`` times their scale, in its dtype."""
    q, x_scale = act_codes(x, activation_bits)
    return (q * x_scale).to(x.dtype)


def ternary_linear_ste(
    x: Tensor,
    weight: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    quantized = ternary_unpack(w_packed, scale, weight.shape[1], x.dtype)
    if activation_bits:
        x = straight_through(x, fake_quantize(x.detach(), activation_bits))
    w = straight_through(weight.to(x.dtype), quantized)
    return torch.nn.functional.linear(x, w, None if bias is None else bias.to(x.dtype))


def ternary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    method: str,
    scale_rule: str,
    threshold_factor: float,
    granularity: str,
    group_size: int = 0,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    with torch.no_grad():
        packed = ternary_quantize(weight, method, scale_rule, threshold_factor, granularity, group_size)
    return ternary_linear_ste(x, weight, *packed, bias, activation_bits)


def ternary_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str,
    scale_rule: str,
    threshold_factor: float,
    granularity: str,
    group_size: int = 0,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    conv2d_out_sizes(x, len(weight), weight.shape[2:], stride, padding, dilation, groups)
    rows = weight.flatten(1)
    with torch.no_grad():
        w_packed, scale = ternary_quantize(rows, method, scale_rule, threshold_factor, granularity, group_size)
        quantized = ternary_unpack(w_packed, scale, rows.shape[1], x.dtype).view(weight.shape)
    if activation_bits:
        x = straight_through(x, fake_quantize(x.detach().flatten(1), activation_bits).view(x.shape))
    w = straight_through(weight.to(x.dtype), quantized)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.conv2d(x, w, bias, list(stride), list(padding), list(dilation), groups)
