"""What runs a trained 1-d convolution: packed codes, no master weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from bittorch.nn.ternary_conv2d_infer import Length, PackedConvolution, PaddedConv, PaddingMode


class TernaryConv1dInference(PaddedConv, PackedConvolution):
    """``y = conv1d(Q(x), codes * scale) + bias`` from packed codes.

    It is a `TernaryConv2dInference` of images of height 1, with the same kernels. Buffers only: ``weight_packed``
    ``(out_channels, ceil(k / 4))`` uint8 with ``k = in_channels / groups * kernel_size``, ``scale`` float32, ``bias``
    or None. Casts and dtypes are those of `TernaryConv2dInference`.

    Made by `bittorch.export_for_inference`, or empty, to be filled by ``load_state_dict``:

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv1d`; dtype is that of the bias.
        scale_groups, activation_bits: as in `TernaryConv2dInference`.

    Raises:
        ValueError, RuntimeError: as `TernaryConv2dInference`; in forward, ``x`` of other channels or dimensions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Length,
        stride: Length = 1,
        padding: Length | str = 0,
        dilation: Length = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        scale_groups: int = 1,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_lengths(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        sizes = kernel_size, stride, padding, dilation, groups
        conv = nn.Conv1d(in_channels, out_channels, *sizes, False, padding_mode, device="meta")
        self._set_up(conv, bias, scale_groups, activation_bits, device, dtype)
        self._make_padding()

    def forward(self, input: Tensor) -> Tensor:
        padding = self._padding
        steps = (1, *self.kernel_size), (1, *self.stride), padding.inside, (1, *self.dilation), self.groups
        return as_signal(self._convolved(as_image(input, self.in_channels), (padding.before, padding.mode), steps))


def check_lengths(**sizes: Any) -> None:
    """ValueError for sizes of images, which torch takes for those of signals."""
    for name, value in sizes.items():
        if isinstance(value, tuple | list) and len(value) != 1:
            raise ValueError(f"{name} of a 1-d convolution must be an integer or a tuple of one, got {value!r}")


@torch.fx.wrap  # one node to torch.fx, which could not trace the check
def as_image(x: Tensor, in_channels: int) -> Tensor:
    """Signals as images of height 1; ValueError for other channels or dimensions."""
    if x.dim() not in (2, 3) or x.shape[-2] != in_channels:
        raise ValueError(
            f"input must be (samples, {in_channels}, length) or ({in_channels}, length), got {tuple(x.shape)}"
        )
    return x.unsqueeze(-2)


def as_signal(y: Tensor) -> Tensor:
    """The inverse of `as_image`; contiguous, since one channel or one sample leaves the order of images open."""
    return y.squeeze(-2).contiguous()
