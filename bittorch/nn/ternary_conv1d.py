"""The training 1-d convolution, whose weight is ternary in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from bittorch.nn.ternary_conv1d_infer import as_image, as_signal, check_lengths
from bittorch.nn.ternary_conv2d import TernaryConvolution
from bittorch.nn.ternary_conv2d_infer import Length, PaddedConv, PaddingMode, columns_of
from bittorch.nn.ternary_layer import Backend, points_to_config
from bittorch.quant import TernaryQuantConfig

torch.fx.wrap("as_image")  # in this module too


class TernaryConv1d(TernaryConvolution, PaddedConv, nn.Conv1d):
    """A 1-d convolution that trains through ternary weights.

    ``y = conv1d(Q(x), codes * scale) + bias``: a `bittorch.TernaryConv2d` of images of height 1, with the same kernels,
    gradients, and bits after export. A filter is a row of the quantiser. With ``activation_bits`` all activations of a
    sample share one scale.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv1d`; padding also ``"same"`` and ``"valid"``.
        threshold_factor, per_channel, quantize, backend, config, activation_bits: as in `bittorch.TernaryConv2d`.

    Attributes:
        weight_scale, quant_lambda: as in `bittorch.TernaryLinear`.

    Shape:
        ``(samples, in_channels, length)`` or ``(in_channels, length)`` to the same with out_channels and the length of
        `torch.nn.Conv1d`, in the dtype of ``weight`` or of autocast.

    Raises:
        TypeError, ValueError, RuntimeError: as `bittorch.TernaryConv2d`.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    @points_to_config
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
        check_lengths(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        sizes = kernel_size, stride, padding, dilation, groups, bias, padding_mode
        super().__init__(in_channels, out_channels, *sizes, device=device, dtype=dtype)
        self.config.check_in_features(columns_of(self))
        self._make_padding()
        self._set_up(quantize, backend)

    @classmethod
    def from_conv1d(cls, conv: nn.Conv1d, config: TernaryQuantConfig | None = None) -> TernaryConv1d:
        """A ternary layer that shares the parameters of ``conv``; TypeError for any other module."""
        return cls._of(conv, nn.Conv1d, config)

    def _filters(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(2)

    def _from_filters(self, filters: Tensor) -> Tensor:
        return filters.squeeze(2)

    def _make_padding(self, **new: Any) -> None:
        super()._make_padding(**new)
        self._reversed_padding_repeated_twice = self._padding.around[:2]  # what torch's own forward reads

    def forward(self, input: Tensor) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input)
        padding = self._padding
        steps = (1, *self.stride), padding.inside, (1, *self.dilation), self.groups
        return as_signal(self._convolved(as_image(input, self.in_channels), (padding.before, padding.mode), steps))
