"""What runs a trained transposed convolution: packed codes, no master weights."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair

from bittorch.nn.ternary_conv2d_infer import PackedConvolution, PaddingMode, Size
from bittorch.ops._fake import in_memory_format_of

_Pair = tuple[int, ...]


class TernaryConvTranspose2dInference(PackedConvolution):
    """``y = conv_transpose2d(Q(x), codes * scale) + bias`` from packed codes.

    The product is that of `TernaryConv2dInference` with ``stride - 1`` zeros between the activations and the turned
    filters, so a stride costs as many products as there are outputs: at stride 2 four times those of the dense layer.
    Buffers only: ``weight_packed`` ``(out_channels, ceil(k / 4))`` uint8 with ``k = in_channels / groups * kernel
    height * kernel width``, a row being the filter of an output channel, its height and width turned, ``scale``
    float32, ``bias`` or None. Casts and dtypes are those of `TernaryConv2dInference`.

    Made by `bittorch.export_for_inference`, or empty, to be filled by ``load_state_dict``:

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, device, dtype:
            as in `torch.nn.ConvTranspose2d`; dtype is of the bias.
        padding_mode: ``"zeros"``, the only one of `torch.nn.ConvTranspose2d`.
        scale_groups, activation_bits: as in `TernaryConv2dInference`.

    Raises:
        ValueError, RuntimeError: as `TernaryConv2dInference`; output_padding that is neither below the stride nor below
            the dilation; in forward, ``x`` of other channels or dimensions, and an ``output_size`` out of reach.
    """

    transposed = True
    stride: _Pair
    padding: _Pair
    output_padding: _Pair
    dilation: _Pair

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: PaddingMode = "zeros",
        *,
        scale_groups: int = 1,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_transposed(stride, padding, output_padding, dilation)
        sizes = kernel_size, stride, padding, output_padding, groups, False, dilation, padding_mode
        conv = nn.ConvTranspose2d(in_channels, out_channels, *sizes, device="meta")
        self._set_up(conv, bias, scale_groups, activation_bits, device, dtype)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.in_channels, self.out_channels // self.groups, *self.kernel_size

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = spread(input, output_size, *geometry_of_spread(self))
        return self._convolved(x, ([], "constant"), (self.kernel_size, *steps_of(self)))


def check_transposed(stride: Size, padding: Size | str, output_padding: Size, dilation: Size) -> None:
    """ValueError for what no transposed convolution can be; torch says it in the forward pass alone, or not at all."""
    if isinstance(padding, str) or min(_pair(padding)) < 0:
        raise ValueError(f"padding of a transposed convolution must be integers of 0 or more, got {padding!r}")
    if min(*_pair(stride), *_pair(dilation)) < 1:
        raise ValueError(f"stride and dilation must be 1 or more, got {stride} and {dilation}")
    for step, extra, wide in zip(_pair(stride), _pair(output_padding), _pair(dilation), strict=True):
        if not 0 <= extra < max(step, wide):
            raise ValueError(
                f"output_padding must be 0 or more and below stride={stride} or dilation={dilation}, got "
                f"{output_padding}: it completes the last step, and more would be outputs that no input reaches"
            )


def swapped(weight: Tensor, groups: int) -> Tensor:
    """Filters ``(out_channels, in_channels / groups, height, width)`` of the convolution that a transposed one is, from
    its weight ``(in_channels, out_channels / groups, height, width)``; and the other way, since it is its inverse."""
    parts = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return parts.flip(2, 3)


_Geometry = tuple[int, _Pair, _Pair, _Pair, _Pair, _Pair]


def geometry_of_spread(conv: nn.ConvTranspose2d | TernaryConvTranspose2dInference) -> _Geometry:
    """What `spread` takes after the input and the size of the output."""
    return conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.output_padding, conv.dilation  # type: ignore[return-value]


def steps_of(conv: nn.ConvTranspose2d | TernaryConvTranspose2dInference) -> tuple[_Pair, _Pair, _Pair, int]:
    """Stride, padding, dilation and groups of the convolution of what `spread` gives."""
    return (1, 1), (0, 0), conv.dilation, conv.groups


@torch.fx.wrap  # one node to torch.fx, which could not trace the checks
def spread(
    x: Tensor,
    output_size: list[int] | None,
    in_channels: int,
    kernel_size: _Pair,
    stride: _Pair,
    padding: _Pair,
    output_padding: _Pair,
    dilation: _Pair,
) -> Tensor:
    """``x`` with zeros between its rows and columns and around it, so that an ordinary convolution has all outputs."""
    if x.dim() not in (3, 4) or x.shape[-3] != in_channels:
        raise ValueError(
            f"input must be (samples, {in_channels}, height, width) or ({in_channels}, height, width), "
            f"got {tuple(x.shape)}"
        )
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if output_size is not None:
        output_padding = _completing(x, output_size, reach, stride, padding)
    sizes = [low + extra for low, extra in zip(_least(x, reach, stride, padding), output_padding, strict=True)]
    if min(sizes) < 1:
        raise ValueError(
            f"the output would be {tuple(sizes)}: padding={padding} crops all that input {tuple(x.shape)} gives"
        )
    before: list[int] = []
    for r, p, s, extra in zip(reach, padding, stride, output_padding, strict=True):
        before = [r - p, r - p + extra - (s - 1), *before]  # the zeros behind the last activation are too many
    high, wide = stride
    apart = functional.pad(x[..., None, :, None], (0, wide - 1, 0, 0, 0, high - 1)) if high * wide != 1 else None
    wider = x if apart is None else apart.flatten(-2).flatten(-3, -2)
    return in_memory_format_of(x, functional.pad(wider, before) if any(before) else wider)


def _least(x: Tensor, reach: list[int], stride: _Pair, padding: _Pair) -> list[int]:
    """Height and width of the output without padding of its own."""
    return [(n - 1) * s - 2 * p + r + 1 for n, s, p, r in zip(x.shape[-2:], stride, padding, reach, strict=True)]


def _completing(x: Tensor, output_size: list[int], reach: list[int], stride: _Pair, padding: _Pair) -> _Pair:
    """The padding of the output that makes it ``output_size``, ``(height, width)``, or all dimensions of the output."""
    wanted = list(output_size)[-2:]
    least = _least(x, reach, stride, padding)
    extra = tuple(size - low for size, low in zip(wanted, least, strict=False))
    if len(output_size) not in (2, x.dim()) or any(not 0 <= e < s for e, s in zip(extra, stride, strict=True)):
        most = [low + s - 1 for low, s in zip(least, stride, strict=True)]
        raise ValueError(
            f"output_size must be (height, width) from {tuple(least)} to {tuple(most)} for an input "
            f"{tuple(x.shape)}, got {tuple(output_size)}"
        )
    return extra
