"""The training convolution, whose weight is ternary in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from bittorch import ops
from bittorch.nn.ternary_conv2d_infer import PaddedConv2d, PaddingMode, Size, columns_of, geometry
from bittorch.nn.ternary_layer import (
    Backend,
    TernaryLayer,
    blended_input,
    check_backend,
    check_dtype,
    points_to_config,
    resolve_config,
)
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig

_Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]  # stride, padding, dilation, groups


class TernaryConv2d(TernaryLayer, PaddedConv2d, nn.Conv2d):
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
        self.config = resolve_config(config, threshold_factor, per_channel, activation_bits)
        check_backend(backend)
        check_dtype(dtype)
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
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be a torch.nn.Conv2d, got {type(conv).__name__}")
        check_dtype(conv.weight.dtype)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            **geometry(conv),
            bias=conv.bias is not None,
            config=config,
            device="meta",
        )  # meta: no weights are made only to be thrown away
        layer.weight, layer.bias = conv.weight, conv.bias
        layer._make_scale()
        return layer.train(conv.training)

    def _make_padding(self, **new: Any) -> None:
        super()._make_padding(**new)
        self._reversed_padding_repeated_twice = self._padding.around  # what torch's own forward reads

    def forward(self, input: Tensor) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input)
        if self.backend == "cuda" and not input.is_cuda:
            raise RuntimeError(f"backend='cuda', but the input is on {input.device}; move it with .to('cuda')")
        x = input.unsqueeze(0) if input.dim() == 3 else input
        ops.check_conv2d_input(x, self.weight, self.groups)
        y = self._forward_in_parts(x) if self._in_parts else self._forward_in_one(x)
        return y.squeeze(0) if input.dim() == 3 else y

    def _forward_in_one(self, x: Tensor) -> Tensor:
        op: Any = reference.ternary_conv2d if self.backend == "python" else torch.ops.bittorch.ternary_conv2d.default
        bits = self.config.activation_bits or 0
        y: Tensor = op(self._padding.apply(x), self.weight, self.bias, *self._steps, *self.config.op_args(), bits)
        return y

    def _forward_in_parts(self, x: Tensor) -> Tensor:
        dense = self._two_scales()
        if dense is not None:
            return self._conv_forward(x, dense, self.bias)
        w_packed, scale, routed = self._codes()
        bits = self.config.activation_bits or 0
        if self._share < 1 or self.backend == "python":
            weight = reference.straight_through(routed, self._mixed(w_packed, scale))
            blended = blended_input(x.flatten(1), bits, self._share).view(x.shape)
            return self._conv_forward(blended, weight, self.bias)
        x = self._padding.apply(x)
        sizes = self.kernel_size, *self._steps
        y: Tensor = torch.ops.bittorch.ternary_conv2d_packed.default(x, w_packed, scale, self.bias, *sizes, bits)
        return _weight_gradient(y, x.detach(), routed, self._steps, bits) if routed.requires_grad else y

    @property
    def _steps(self) -> _Steps:
        return self.stride, self._padding.inside, self.dilation, self.groups


class _WeightGradient(torch.autograd.Function):
    """The identity on the result of a convolution; gives the weight the gradient that frozen codes have not."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, steps: _Steps, activation_bits: int) -> Tensor:
        x = x.to(y.dtype)  # what autocast makes of it
        kept = ops.act_quantize(x.flatten(1), 8) if activation_bits == 8 else (x,)
        ctx.save_for_backward(*kept)
        ctx.sizes, ctx.dtype, ctx.activation_bits = (x.shape, weight.shape, steps), weight.dtype, activation_bits
        return y.view_as(y)

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


def _weight_gradient(y: Tensor, x: Tensor, weight: Tensor, steps: _Steps, activation_bits: int) -> Tensor:
    result: Tensor = _WeightGradient.apply(y, x, weight, steps, activation_bits)
    return result
