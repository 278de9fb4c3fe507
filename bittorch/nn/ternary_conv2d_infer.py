"""What runs a trained convolution: packed codes, no master weights."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair, _single

from bittorch import _env
from bittorch.nn.packed_layer import PackedLayer
from bittorch.nn.parts import check_not_sharded
from bittorch.quant.ternary import no_trits

Size = int | tuple[int, int]
Length = int | tuple[int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d


class Padding:
    """The padding of a convolution: ``inside`` the op, zeros alike on both sides, and the rest ``before`` it."""

    def __init__(self, kernel_size: tuple[int, ...], padding: Any, dilation: Any, padding_mode: PaddingMode) -> None:
        sizes = kernel_size, padding, dilation
        if len(kernel_size) == 1:  # along the width of images of height 1
            inside = padding if isinstance(padding, str) else (0, *_single(padding))
            sizes = (1, *kernel_size), inside, (1, *_single(dilation))
        self.around = _around(*sizes)
        if min(self.around) < 0:
            raise ValueError(f"padding must not be negative, got {padding}")
        self.mode = "constant" if padding_mode == "zeros" else padding_mode
        left, right, top, bottom = self.around
        self.inside = (min(top, bottom), min(left, right)) if self.mode == "constant" else (0, 0)
        high, wide = self.inside
        self.before = [left - wide, right - wide, top - high, bottom - high]


Around = tuple[list[int], str]
"""Padding before the op, as `torch.nn.functional.pad` takes it: left, right, top, bottom, and the mode."""


def padded(x: Tensor, around: Around) -> Tensor:
    before, mode = around
    return functional.pad(x, before, mode) if any(before) else x


def _around(kernel_size: tuple[int, ...], padding: Size | str, dilation: Size) -> list[int]:
    """Left, right, top, bottom; of an odd sum the right and the bottom have one more, as in torch."""
    if isinstance(padding, str):
        sums = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel_size, _pair(dilation), strict=True)]
        height, width = sums
        return [width // 2, width - width // 2, height // 2, height - height // 2]
    high, wide = _pair(padding)
    return [wide, wide, high, high]


_PADDING_FIELDS = ("kernel_size", "padding", "dilation", "padding_mode")


class PaddedConv(nn.Module):
    """A convolution whose `Padding` follows what it is made of: dilated backbones set new values on a made layer."""

    _padding: Padding

    def _make_padding(self, **new: Any) -> None:
        self._padding = Padding(**{name: getattr(self, name) for name in _PADDING_FIELDS} | new)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PADDING_FIELDS and "_padding" in vars(self):
            self._make_padding(**{name: value})
        super().__setattr__(name, value)


def columns_of(conv: Convolution | PackedConvolution) -> int:
    """Weights of a filter."""
    return conv.in_channels // conv.groups * math.prod(conv.kernel_size)


def geometry(conv: Convolution | PackedConvolution) -> dict[str, Any]:
    """The arguments of a convolution, beside its channels and bias."""
    names = ["kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if conv.transposed else []
    return {name: getattr(conv, name) for name in names}


class PackedConvolution(PackedLayer):
    """What the deployed convolutions share: their sizes, by the names that those of torch have."""

    transposed: ClassVar[bool] = False
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int

    def _set_up(
        self,
        conv: Convolution,
        bias: bool,
        scale_groups: int,
        activation_bits: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """The buffers and sizes of ``conv``, a layer of torch on the meta device, which has checked its arguments."""
        columns = columns_of(conv)
        if scale_groups < 0 or (scale_groups > 1 and (columns % scale_groups or columns // scale_groups % 4)):
            raise ValueError(f"scale_groups={scale_groups} do not cut {columns} weights into equal multiples of 4")
        PackedLayer.__init__(self, conv.out_channels, columns, bias, scale_groups, activation_bits, device, dtype)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        for name, value in geometry(conv).items():
            setattr(self, name, value)

    @property
    def columns(self) -> int:
        return columns_of(self)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    @property
    def scale_groups(self) -> int:
        """Scales of a filter; 0 when the layer has a single one."""
        return self._scale_groups()

    def _convolved(self, input: Tensor, around: Around, steps: tuple[Any, ...]) -> Tensor:
        """The product with an image; ``steps`` are those of the op."""
        buffers: dict[str, Any] = self._buffers
        weights = buffers["weight_packed"], buffers["scale"], buffers["bias"]
        bits = no_trits(self.activation_bits, "a convolution") or 0
        return _convolution(input, *weights, self.in_channels, around, steps, bits)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}"]
        parts += [f"{name}={value}" for name, value in geometry(self).items()]
        parts += [f"bias={self.bias is not None}", f"scale_groups={self.scale_groups}"]
        if self.activation_bits:
            parts.append(f"activation_bits={self.activation_bits}")
        return ", ".join(parts)


class TernaryConv2dInference(PaddedConv, PackedConvolution):
    """``y = conv2d(Q(x), codes * scale) + bias`` from packed codes.

    Buffers only: ``weight_packed`` ``(out_channels, ceil(k / 4))`` uint8 with ``k = in_channels / groups * kernel
    height * kernel width``, ``scale`` float32, ``bias`` or None. ``.half()`` and ``.to(dtype)`` cast the bias and leave
    codes and scale as they are. ``x`` may be float32, float16 or bfloat16; the result has its dtype.

    Made by `bittorch.export_for_inference`, or empty, to be filled by ``load_state_dict``:

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv2d`; dtype is that of the bias.
        scale_groups: scales of a filter: 0 for one scale per layer, 1 for one per filter, more for groups of
            ``k / scale_groups`` weights.
        activation_bits: None for floating activations, else 8, 16 or 24, as in `bittorch.TernaryQuantConfig`.

    Raises:
        ValueError: scale_groups that do not cut k into equal multiples of 4, negative padding, an unknown
            activation_bits, and what `torch.nn.Conv2d` refuses.
        RuntimeError: from ``load_state_dict``: the reserved code 11, wrong padding, or a scale that is not finite.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        scale_groups: int = 1,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = kernel_size, stride, padding, dilation, groups
        conv = nn.Conv2d(in_channels, out_channels, *sizes, False, padding_mode, device="meta")
        self._set_up(conv, bias, scale_groups, activation_bits, device, dtype)
        self._make_padding()

    def forward(self, input: Tensor) -> Tensor:
        padding = self._padding
        steps = self.kernel_size, self.stride, padding.inside, self.dilation, self.groups
        return self._convolved(input, (padding.before, padding.mode), steps)


@torch.fx.wrap  # one node to torch.fx, which could not trace the checks
def _convolution(
    input: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    in_channels: int,
    around: Around,
    steps: tuple[Any, ...],
    activation_bits: int,
) -> Tensor:
    check_not_sharded(input, weight_packed)
    unbatched = input.dim() == 3
    if not (unbatched or input.dim() == 4) or input.shape[-3] != in_channels:
        raise ValueError(
            f"input must be (samples, {in_channels}, height, width) or ({in_channels}, height, width), "
            f"got {tuple(input.shape)}"
        )
    x = padded(input.unsqueeze(0) if unbatched else input, around)
    y: Tensor = torch.ops.bittorch.ternary_conv2d_packed.default(
        x, weight_packed, scale, bias, *steps, activation_bits, _env.INFER_VARIANT
    )
    return y.squeeze(0) if unbatched else y
