"""A 2-d convolution with packed ternary weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width, check_same_device, conv2d_out_sizes, in_memory_format_of


def ternary_conv2d_packed(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    """``y = conv2d(Q(x), codes * scale) + bias``; a row of codes is a filter, flattened as torch flattens it.

    With floating activations ``Q(x) = x``, and a sum runs over the columns in rising order in float32. With
    ``activation_bits`` the activations are quantised by `act_quantize`, one scale per sample, and sums and epilogue are
    those of `ternary_linear_w2a8`. Padding counts as 0. On a CPU every kernel, batch size and thread count gives the
    same bits; integers give them on every device. A sample with a NaN or an infinity is NaN throughout with
    ``activation_bits``. Under autocast ``x`` alone is cast.

    Args:
        x: ``(samples, channels, height, width)`` float32, float16 or bfloat16.
        w_packed: ``(out_channels, ceil(k / 4))`` uint8 with ``k = channels / groups * kernel height * kernel width``.
        scale: float32 ``(1,)``, ``(out_channels,)`` or ``(out_channels, k / group_size)``.
        bias: None or ``(out_channels,)`` floating; added in float32.
        kernel_size, stride, padding, dilation: two integers each, height before width; padding on both sides alike.
        groups: of channels, as in `torch.nn.Conv2d`.
        activation_bits: 0 for floating activations, 8, 16 or 24 for integers.
        variant: ``auto``, ``baseline``, ``tiled``, one of ``bittorch._C.kernels()``, or ``unfold``: patches by
            `torch.nn.functional.unfold` and the linear product, which is what CUDA runs.

    Returns:
        ``(samples, out_channels, out height, out width)`` of the dtype of ``x``, and channels_last where ``x`` is.
        Differentiable in ``x`` and ``bias``, once.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, a kernel that is larger
            than the padded input, a padded size of 2^63 or more, an unknown variant.
    """
    return torch.ops.bittorch.ternary_conv2d_packed.default(
        x, w_packed, scale, bias, kernel_size, stride, padding, dilation, groups, activation_bits, variant
    )


@torch.library.register_fake("bittorch::ternary_conv2d_packed")
def _(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    rows = w_packed.shape[0] if w_packed.dim() == 2 else 0
    out = conv2d_out_sizes(x, rows, kernel_size, stride, padding, dilation, groups)
    check_packed_width(w_packed, x.shape[1] // groups * kernel_size[0] * kernel_size[1])
    check_same_device(x=x, w_packed=w_packed, scale=scale, bias=bias)
    return in_memory_format_of(x, x.new_empty((x.shape[0], w_packed.shape[0], *out)))
