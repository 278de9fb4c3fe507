"""The training transposed convolution, whose weight is ternary in the forward pass."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn

from bittorch.nn.ternary_conv2d import TernaryConvolution
from bittorch.nn.ternary_conv2d_infer import PaddingMode, Size, columns_of
from bittorch.nn.ternary_conv_transpose2d_infer import (
    check_transposed,
    geometry_of_spread,
    spread,
    steps_of,
    swapped,
)
from bittorch.nn.ternary_layer import Backend, points_to_config
from bittorch.quant import TernaryQuantConfig

torch.fx.wrap("spread")  # in this module too


class TernaryConvTranspose2d(TernaryConvolution, nn.ConvTranspose2d):
    """A transposed 2-d convolution that trains through ternary weights.

    ``y = conv_transpose2d(Q(x), codes * scale) + bias``. A row of the quantiser is the filter of an output channel,
    ``in_channels / groups * kernel height * kernel width`` weights, so ``per_channel`` is a scale for each output
    channel. The product is that of `bittorch.TernaryConv2d` with ``stride - 1`` zeros between the activations: the same
    kernels and gradients, the same bits after export, and at stride 2 four times the products of the dense layer. With
    ``activation_bits`` all activations of a sample share one scale; where padding crops activations, these do not
    count.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, device, dtype:
            as in `torch.nn.ConvTranspose2d`.
        padding_mode: ``"zeros"``, the only one of `torch.nn.ConvTranspose2d`.
        threshold_factor, per_channel, quantize, backend, config, activation_bits: as in `bittorch.TernaryConv2d`.

    Attributes:
        weight_scale, quant_lambda: as in `bittorch.TernaryLinear`.

    Shape:
        ``(samples, in_channels, height, width)`` or ``(in_channels, height, width)`` to the same with out_channels and
        the sizes of `torch.nn.ConvTranspose2d`, or ``output_size`` of the forward pass, in the dtype of ``weight`` or
        of autocast.

    Raises:
        TypeError, RuntimeError: as `bittorch.TernaryConv2d`.
        ValueError: as `bittorch.TernaryConv2d`; output_padding that is neither below the stride nor below the dilation,
            and an ``output_size`` out of reach.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    @points_to_config
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
        check_transposed(stride, padding, output_padding, dilation)
        sizes = kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode
        super().__init__(in_channels, out_channels, *sizes, device=device, dtype=dtype)
        self.config.check_in_features(columns_of(self))
        self._set_up(quantize, backend)

    @classmethod
    def from_conv_transpose2d(
        cls, conv: nn.ConvTranspose2d, config: TernaryQuantConfig | None = None
    ) -> TernaryConvTranspose2d:
        """A ternary layer that shares the parameters of ``conv``; TypeError for any other module."""
        return cls._of(conv, nn.ConvTranspose2d, config)

    def _filters(self, weight: Tensor) -> Tensor:
        return swapped(weight, self.groups)

    def _from_filters(self, filters: Tensor) -> Tensor:
        return swapped(filters, self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input, output_size)
        return self._convolved(spread(input, output_size, *geometry_of_spread(self)), ([], "constant"), steps_of(self))
