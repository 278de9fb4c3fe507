"""The training convolution, whose weight is ternary in the forward pass."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from bittorch import ops
from bittorch.nn.parts import (
    QuantizerArgs,
    blended_input,
    check_backend_of,
    codes_of,
    detached,
    in_transform,
    mixed,
    narrowed_codes,
    two_scales,
)
from bittorch.nn.ternary_conv2d_infer import (
    Around,
    Convolution,
    PaddedConv,
    PaddingMode,
    Size,
    columns_of,
    geometry,
    padded,
)
from bittorch.nn.ternary_layer import Backend, TernaryLayer, points_to_config
from bittorch.ops import reference
from bittorch.ops._fake import in_memory_format_of
from bittorch.quant import TernaryQuantConfig
from bittorch.quant.ternary import no_trits

_Conv = TypeVar("_Conv", bound="TernaryConvolution")
Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation and groups of the op."""


class TernaryConvolution(TernaryLayer):
    """What the training convolutions share: all of them are 2-d convolutions of filters that `_filters` arranges."""

    @classmethod
    def _of(cls: type[_Conv], conv: Convolution, kind: type[Convolution], config: TernaryQuantConfig | None) -> _Conv:
        """A layer that shares the parameters of ``conv``; TypeError for one that is no ``kind``."""
        if not isinstance(conv, kind):
            raise TypeError(f"conv must be a torch.nn.{kind.__name__}, got {type(conv).__name__}")
        make: Any = cls  # the constructors of the layers take these
        sizes = conv.in_channels, conv.out_channels
        layer: _Conv = make(*sizes, **geometry(conv), bias=conv.bias is not None, config=config, device="meta")
        return layer._sharing(conv)

    def _convolved(self, input: Tensor, around: Around, steps: Steps) -> Tensor:
        filters = self._filters(self.weight)
        if self._in_parts:
            step = self._leaf_step()
            return _convolution_in_parts(
                input, filters, step, self.bias, around, steps, self.config, self.backend, self._share
            )
        bits = no_trits(self.config.activation_bits, "a convolution") or 0
        return _convolution(input, filters, self.bias, around, steps, self.backend, self.config.op_args(), bits)


class TernaryConv2d(TernaryConvolution, PaddedConv, nn.Conv2d):
    """A 2-d convolution that trains through ternary weights.

    ``y = conv2d(Q(x), codes * scale) + bias`` with ``codes, scale`` the quantised ``weight``, a filter being a row of
    the quantiser. The optimiser updates the full-precision ``weight``; its gradient is straight-through. In ``eval()``
    the layer gives, bit for bit, what `bittorch.export_for_inference` makes of it. With ``activation_bits`` all
    activations of a sample share one scale.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv2d`; padding also ``"same"`` and ``"valid"``.
        threshold_factor, per_channel, quantize, backend, config, activation_bits: as in `bittorch.TernaryLinear`; one
            scale per filter, or of ``group_size`` weights of the flattened filter with granularity ``group``.

    Attributes:
        weight_scale, quant_lambda: as in `bittorch.TernaryLinear`.

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

    @points_to_config
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
        threshold_factor: float | None = None,
        per_channel: bool = True,
        quantize: bool = True,
        backend: Backend = "auto",
        config: TernaryQuantConfig | None = None,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._configure(config, threshold_factor, per_channel, activation_bits, quantize, backend, dtype)
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
        self.config.check_in_features(columns_of(self))
        self._make_padding()
        self._set_up(quantize, backend)

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, config: TernaryQuantConfig | None = None) -> TernaryConv2d:
        """A ternary layer that shares the parameters of ``conv``; TypeError for any other module."""
        return cls._of(conv, nn.Conv2d, config)

    def _make_padding(self, **new: Any) -> None:
        super()._make_padding(**new)
        self._reversed_padding_repeated_twice = self._padding.around  # what torch's own forward reads

    def forward(self, input: Tensor) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input)
        padding = self._padding
        steps = self.stride, padding.inside, self.dilation, self.groups
        return self._convolved(input, (padding.before, padding.mode), steps)


# To torch.fx each of these is one node: their checks are control flow that it could not trace.


@torch.fx.wrap
def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    around: Around,
    steps: Steps,
    backend: str,
    quantizer: QuantizerArgs,
    activation_bits: int,
) -> Tensor:
    x = _checked(input, weight, steps, backend)
    if backend != "python" and in_transform():
        codes = narrowed_codes(weight, quantizer)
        y: Tensor = _value_of_codes(x, weight, *codes, bias, around, steps, activation_bits)
    else:
        op: Any = reference.ternary_conv2d if backend == "python" else torch.ops.bittorch.ternary_conv2d.default
        y = op(padded(x, around), weight, bias, *steps, *quantizer, activation_bits)
        if backend == "python":
            y = in_memory_format_of(x, y)
    return y.squeeze(0) if input.dim() == 3 else y


@torch.fx.wrap
def _convolution_in_parts(
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    around: Around,
    steps: Steps,
    config: TernaryQuantConfig,
    backend: str,
    share: float,
) -> Tensor:
    x = _checked(input, weight, steps, backend)
    bits = no_trits(config.activation_bits, "a convolution") or 0
    if weight_scale is not None and not config.packs:
        y = functional.conv2d(padded(x, around), two_scales(weight, weight_scale, config, share), bias, *steps)
    else:
        w_packed, scale, routed = codes_of(weight, weight_scale, config)
        if backend != "python" and in_transform() and share == 1:
            y = _value_of_codes(x, routed, w_packed, scale, bias, around, steps, bits)
        elif share < 1 or backend == "python":
            dense = reference.straight_through(routed, mixed(weight, w_packed, scale, share))
            blended = blended_input(x.flatten(1), bits, share).view(x.shape) if bits else x
            y = functional.conv2d(padded(blended, around), dense, bias, *steps)
        else:
            x = padded(x, around)
            sizes = tuple(weight.shape[2:]), *steps
            y = torch.ops.bittorch.ternary_conv2d_packed.default(x, w_packed, scale, bias, *sizes, bits)
            y = _weight_gradient(y, x.detach(), routed, steps, bits) if routed.requires_grad else y
    y = in_memory_format_of(x, y)
    return y.squeeze(0) if input.dim() == 3 else y


def _value_of_codes(
    x: Tensor,
    weight: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    around: Around,
    steps: Steps,
    activation_bits: int,
) -> Tensor:
    """The kernel's convolution with codes that were made of ``weight``, with the derivatives of plain torch."""
    sizes = tuple(weight.shape[2:]), *steps
    given = padded(x.detach(), around), *detached(w_packed, scale, bias)
    value = torch.ops.bittorch.ternary_conv2d_packed.default(*given, *sizes, activation_bits)
    dense = reference.straight_through(weight, mixed(weight, w_packed, scale, 1))
    rounded = blended_input(x.flatten(1), activation_bits, 1).view(x.shape)
    y = functional.conv2d(padded(rounded, around), dense, bias, *steps)
    y = y.reshape(value.shape).to(value.dtype)  # of vmap over nothing, and of vmap in autocast, conv2d gives another
    return reference.straight_through(y, value)


def _checked(input: Tensor, weight: Tensor, steps: Steps, backend: str) -> Tensor:
    """The input as a batch."""
    check_backend_of(input, weight, backend)
    x = input.unsqueeze(0) if input.dim() == 3 else input
    ops.check_conv2d_input(x, weight, steps[3])
    return x


class _WeightGradient(torch.autograd.Function):
    """The identity on the result of a convolution; gives the weight the gradient that frozen codes have not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, weight: Tensor, steps: Steps, activation_bits: int) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Steps, int], output: Tensor) -> None:
        y, x, weight, steps, activation_bits = inputs
        x = x.to(y.dtype)  # what autocast makes of it
        kept = ops.act_quantize(x.flatten(1), 8) if activation_bits == 8 else (x,)
        ctx.save_for_backward(*kept)
        ctx.sizes, ctx.dtype, ctx.activation_bits = (x.shape, weight.shape, steps), weight.dtype, activation_bits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        x, *scale = ctx.saved_tensors
        shape, weight_shape, steps = ctx.sizes
        if scale:
            x = x * scale[0]
        elif ctx.activation_bits:
            x = reference.fake_quantize(x.flatten(1), ctx.activation_bits)
        grad_weight = conv2d_weight(x.to(grad.dtype).view(shape), weight_shape, grad, *steps)
        return grad, None, grad_weight.to(ctx.dtype), None, None


def _weight_gradient(y: Tensor, x: Tensor, weight: Tensor, steps: Steps, activation_bits: int) -> Tensor:
    result: Tensor = _WeightGradient.apply(y, x, weight, steps, activation_bits)
    return result
