"""The training convolution: quantise, then convolve with the packed codes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops.ternary_linear import check_dtypes


def check_conv2d_input(x: Tensor, weight: Tensor, groups: int) -> None:
    """Raises where ``nn.Conv2d`` would: the op takes two dtypes, for autocast."""
    check_dtypes(x, weight)
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"x must be (samples, {weight.shape[1] * groups}, height, width) for weight {tuple(weight.shape)} and "
            f"groups={groups}, got {tuple(x.shape)}"
        )


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
    """``y = conv2d(Q(x), codes * scale) + bias`` with ``codes, scale = ternary_quantize(weight.flatten(1))``.

    The convolution is that of `ternary_conv2d_packed`: an exported layer gives the same bits. For the backward pass the
    packed codes are kept, not the dense quantised weight, and with ``activation_bits=8`` the int8 activations.

    The gradient is torch's for ``conv2d(Q(x), codes * scale)``, straight through both quantisers.

    Args:
        x: ``(samples, channels, height, width)`` of the dtype of ``weight``; under autocast ``x`` alone is cast.
        weight: ``(out_channels, channels / groups, kernel height, kernel width)`` float32, float16 or bfloat16.
        bias: None or ``(out_channels,)`` floating.
        stride, padding, dilation, groups, activation_bits, variant: as in `ternary_conv2d_packed`.
        method, scale_rule, threshold_factor, granularity, group_size: as in `ternary_quantize`.

    Returns:
        ``(samples, out_channels, out height, out width)`` of the dtype of ``x``, and channels_last where ``x`` is.
        Differentiable once; a second derivative raises RuntimeError.

    Raises:
        TypeError, ValueError, RuntimeError: as in the two ops, and for ``x`` and ``weight`` of different dtypes.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """
    check_conv2d_input(x, weight, groups)
    quantizer = (method, scale_rule, threshold_factor, granularity, group_size)
    return torch.ops.bittorch.ternary_conv2d.default(
        x, weight, bias, stride, padding, dilation, groups, *quantizer, activation_bits, variant
    )
