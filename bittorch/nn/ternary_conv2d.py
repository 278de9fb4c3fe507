"""Convolutions: `TernaryConv2d` trains, `TernaryConv2dInference` runs what was trained."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bittorch import _env, ops
from bittorch.nn.packed_layer import PackedLayer
from bittorch.nn.ternary_linear import (
    Backend,
    _check_backend,
    _check_dtype,
    _describe,
    _resolve_config,
    blend,
    gathered,
)
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer

_Size = int | tuple[int, int]
_PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class _Padding:
    """The padding of a convolution: ``inside`` the op, zeros alike on both sides, and the rest ``before`` it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        around = [int(size) for size in conv._reversed_padding_repeated_twice]  # left, right, top, bottom
        if min(around) < 0:
            raise ValueError(f"padding must not be negative, got {conv.padding}")
        self.mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        left, right, top, bottom = around
        self.inside = (min(top, bottom), min(left, right)) if self.mode == "constant" else (0, 0)
        high, wide = self.inside
        self.before = [left - wide, right - wide, top - high, bottom - high]

    def apply(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.before, self.mode) if any(self.before) else x


def _columns(conv: nn.Conv2d) -> int:
    return conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]


class TernaryConv2d(nn.Conv2d):
    """A 2-d convolution that trains through ternary weights.

    ``y = conv2d(Q(x), codes * scale) + bias`` with ``codes, scale`` the quantised ``weight``, a filter being a row of
    the quantiser. The optimiser updates the full-precision ``weight``; its gradient is straight-through. In ``eval()``
    the layer gives, bit for bit, what `bittorch.export_for_inference` makes of it. With ``activation_bits`` all
    activations of a sample share one scale.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv2d`; padding also ``"same"`` and ``"valid"``.
        threshold_factor, per_channel, quantize, backend, config, activation_bits: as in `bittorch.TernaryLinear`; one
            scale a filter, or of ``group_size`` weights of the flattened filter with granularity ``group``.

    Attributes:
        quant_lambda: as in `bittorch.TernaryLinear`.

    Shape:
        ``(samples, in_channels, height, width)`` or ``(in_channels, height, width)`` to the same with out_channels and
        the sizes of `torch.nn.Conv2d`, contiguous, in the dtype of ``weight`` or of autocast.

    Raises:
        TypeError: a config of another class, a dtype that is not floating; under autocast, ``x`` that it does not cast.
        ValueError: a bad configuration, negative padding, groups that do not divide, an unknown backend; in forward,
            other channels, or a kernel larger than the padded input.
        RuntimeError: ``backend="cuda"`` where there is none; in forward, ``x`` of another dtype than ``weight``.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        *,
        threshold_factor: float | None = None,
        per_channel: bool = True,
        quantize: bool = True,
        backend: Backend = "auto",
        config: TernaryQuantConfig | None = None,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config = _resolve_config(config, threshold_factor, per_channel, activation_bits)
        if self.config.learned or self.config.ste != "identity":
            raise ValueError(
                f"TernaryConv2d takes fixed methods with ste='identity', got method={self.config.method!r} "
                f"with ste={self.config.ste!r}"
            )
        _check_backend(backend)
        _check_dtype(dtype)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self.config.check_in_features(_columns(self))
        self._padding = _Padding(self)
        self.quantize = quantize
        self.backend = backend
        self.quant_lambda = 1.0

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, config: TernaryQuantConfig | None = None) -> TernaryConv2d:
        """A ternary layer that shares the parameters of ``conv``; TypeError for any other module."""
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        _check_dtype(conv.weight.dtype)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            **_geometry(conv),
            bias=conv.bias is not None,
            config=config,
            device="meta",
        )  # meta: no weights are made only to be thrown away
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.quantize:
            return super().forward(input)
        if self.backend == "cuda" and not input.is_cuda:
            raise RuntimeError(f"backend='cuda', but the input is on {input.device}; move it with .to('cuda')")
        x = input.unsqueeze(0) if input.dim() == 3 else input
        ops.check_conv2d_input(x, self.weight, self.groups)
        if self.training and self.quant_lambda < 1:
            y: Tensor = self._warming_up(x)
            return y.squeeze(0) if input.dim() == 3 else y
        op: Any = reference.ternary_conv2d if self.backend == "python" else torch.ops.bittorch.ternary_conv2d.default
        steps = self.stride, self._padding.inside, self.dilation, self.groups
        bits = self.config.activation_bits or 0
        y = op(self._padding.apply(x), self.weight, self.bias, *steps, *self.config.op_args(), bits)
        return y.squeeze(0) if input.dim() == 3 else y

    def _warming_up(self, x: Tensor) -> Tensor:
        weight = self.weight
        with torch.no_grad():
            packed = ops.ternary_quantize(weight.flatten(1), *self.config.op_args())
            quantized = ops.ternary_unpack(*packed, _columns(self), weight.dtype).view(weight.shape)
            mixed = blend(weight, quantized, self.quant_lambda)
            if self.config.activation_bits:
                rounded = reference.fake_quantize(x.flatten(1), self.config.activation_bits).view(x.shape)
                rounded = blend(x, rounded, self.quant_lambda)
        if self.config.activation_bits:
            x = reference.straight_through(x, rounded)
        return self._conv_forward(x, reference.straight_through(weight, mixed), self.bias)

    def quantize_packed(self) -> tuple[Tensor, Tensor]:
        """Packed codes and float32 scales of ``weight`` as it stands, a filter a row: what export keeps.

        Raises:
            ValueError: NaN or Inf in the weight.
        """
        return TernaryQuantizer(self.config).quantize_packed(gathered(self.weight).detach())

    def get_quantized_weight(self) -> Tensor:
        """``codes * scale`` in the dtype and shape of ``weight``, detached: what the forward pass convolves with.

        Raises:
            ValueError: the weight holds NaN or Inf.
        """
        weight = gathered(self.weight).detach()
        return TernaryQuantizer(self.config).quantize_ste(weight) if self.quantize else weight.clone()

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *_describe(self.config, self.quantize, self.backend)])


def _geometry(conv: nn.Conv2d | TernaryConv2dInference) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names}


class TernaryConv2dInference(PackedLayer):
    """``y = conv2d(Q(x), codes * scale) + bias`` from packed codes.

    Buffers only: ``weight_packed`` ``(out_channels, ceil(k / 4))`` uint8 with ``k = in_channels / groups * kernel
    height * kernel width``, ``scale`` float32, ``bias`` or None. ``.half()`` and ``.to(dtype)`` cast the bias and leave
    codes and scale as they are. ``x`` may be float32, float16 or bfloat16; the result has its dtype.

    Made by `bittorch.export_for_inference`, or empty, to be filled by ``load_state_dict``:

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv2d`; dtype is that of the bias.
        scale_groups: scales of a filter: 0 for one scale a layer, 1 for one a filter, more for groups of
            ``k / scale_groups`` weights.
        activation_bits: None for floating activations, else 8, 16 or 24, as in `bittorch.TernaryQuantConfig`.

    Raises:
        ValueError: scale_groups that do not cut k into equal multiples of 4, negative padding, an unknown
        activation_bits, and what `torch.nn.Conv2d` refuses; from ``load_state_dict`` RuntimeError, for the reserved
        code 11, wrong padding, or a scale that is not finite.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        *,
        scale_groups: int = 1,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = kernel_size, stride, padding, dilation, groups
        conv = nn.Conv2d(in_channels, out_channels, *sizes, False, padding_mode, device="meta")  # checks and pairs
        columns = _columns(conv)
        if scale_groups < 0 or (scale_groups > 1 and (columns % scale_groups or columns // scale_groups % 4)):
            raise ValueError(f"scale_groups={scale_groups} do not cut {columns} weights into equal multiples of 4")
        super().__init__(out_channels, columns, bias, scale_groups, activation_bits, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self._padding = _Padding(conv)

    @property
    def columns(self) -> int:
        return self.in_channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def scale_groups(self) -> int:
        """Scales of a filter; 0 when the layer has a single one."""
        return self._scale_groups()

    def forward(self, input: Tensor) -> Tensor:
        unbatched = input.dim() == 3
        if not (unbatched or input.dim() == 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"input must be (samples, {self.in_channels}, height, width) or ({self.in_channels}, height, width), "
                f"got {tuple(input.shape)}"
            )
        padding, buffers = self._padding, self._buffers
        y: Tensor = torch.ops.bittorch.ternary_conv2d_packed.default(
            padding.apply(input.unsqueeze(0) if unbatched else input),
            buffers["weight_packed"],
            buffers["scale"],
            buffers["bias"],
            self.kernel_size,
            self.stride,
            padding.inside,
            self.dilation,
            self.groups,
            self.activation_bits or 0,
            _env.INFER_VARIANT,
        )
        return y.squeeze(0) if unbatched else y

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}"]
        parts += [f"{name}={value}" for name, value in _geometry(self).items()]
        parts += [f"bias={self.bias is not None}", f"scale_groups={self.scale_groups}"]
        if self.activation_bits:
            parts.append(f"activation_bits={self.activation_bits}")
        return ", ".join(parts)
