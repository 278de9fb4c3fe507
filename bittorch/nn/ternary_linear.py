"""The training layer: a linear layer whose weight is ternary in the forward pass."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

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
from bittorch.nn.ternary_activations import ternary_product
from bittorch.nn.ternary_layer import Backend, TernaryLayer, points_to_config
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig
from bittorch.quant.ternary import TERNARY, ActivationBits


class TernaryLinear(TernaryLayer, nn.Linear):
    """A linear layer that trains through ternary weights.

    ``y = x @ (codes * scale)^T + bias`` with ``codes, scale`` the quantised ``weight``. The optimiser updates the
    full-precision ``weight``; its gradient is straight-through. In ``eval()`` the layer gives, bit for bit, what
    `bittorch.export_for_inference` makes of it. First weights are those of `torch.nn.Linear`, stretched so that
    ``codes * scale`` has their norm (`bittorch.nn.init.norm_preserving_`).

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        threshold_factor: None is that of the default configuration; a number is a share of the largest magnitude of a
            row (method max, least-squares scale).
        per_channel: one scale per row; False is one for the layer.
        quantize: False makes it a plain `torch.nn.Linear` (full precision first, ternary later).
        backend: ``auto`` runs the kernels of the tensor's device, ``cuda`` insists on CUDA, ``python`` runs plain
            torch, whose sums round differently.
        config: everything else of `bittorch.TernaryQuantConfig`: method, scale rule, granularity.
        activation_bits: None for floating activations, else 8, 16, 24 or ``"ternary"``, as in
            `bittorch.TernaryQuantConfig`.

    Attributes:
        weight_scale: with a learned method the parameter that it learns, float32; else None. Leave it out of weight
            decay (`bittorch.train.parameter_groups`). It follows the weights until it is trained or loaded.
        quant_lambda: below 1, the share of quantisation in training: weight and activations are
            ``v + quant_lambda * (Q(v) - v)``; `bittorch.train.QuantWarmup` raises it. ``eval()`` always quantises.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``, in the dtype of ``weight`` or of autocast.

    Raises:
        TypeError: a config of another class, a dtype that is not floating; under autocast, ``x`` that it does not cast.
        ValueError: a bad configuration, groups that do not divide in_features, an unknown backend.
        RuntimeError: ``backend="cuda"`` where there is none; in forward, ``x`` of another dtype than ``weight``.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    @points_to_config
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold_factor: float | None = None,
        per_channel: bool = True,
        quantize: bool = True,
        backend: Backend = "auto",
        *,
        config: TernaryQuantConfig | None = None,
        activation_bits: ActivationBits = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._configure(config, threshold_factor, per_channel, activation_bits, quantize, backend, dtype)
        self.config.check_in_features(in_features)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._set_up(quantize, backend)

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: TernaryQuantConfig | None = None) -> TernaryLinear:
        """A ternary layer that shares the parameters of ``linear``; TypeError for any other module."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        return cls(*sizes, config=config, device="meta")._sharing(linear)  # meta: no weights made to be thrown away

    def forward(self, input: Tensor) -> Tensor:
        self._note_call()
        if not self.quantize:
            return super().forward(input)
        bits = self.config.activation_bits
        if self._in_parts or bits == TERNARY:
            parameters = self.weight, self._leaf_step(), self.bias
            return _product_in_parts(input, *parameters, self.config, self.backend, self._share)
        return _product(input, self.weight, self.bias, self.backend, self.config.op_args(), bits or 0)


# To torch.fx each of these is one node: their checks are control flow that it could not trace.


@torch.fx.wrap
def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, backend: str, quantizer: QuantizerArgs, activation_bits: int
) -> Tensor:
    check_backend_of(x, weight, backend)
    ops.check_input(x, weight)
    if backend != "python" and in_transform():
        return _product_of_codes(x, weight, *narrowed_codes(weight, quantizer), bias, activation_bits, backend)
    op = reference.ternary_linear if backend == "python" else torch.ops.bittorch.ternary_linear.default
    return op(x, weight, bias, *quantizer, activation_bits)


@torch.fx.wrap
def _product_in_parts(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    config: TernaryQuantConfig,
    backend: str,
    share: float,
) -> Tensor:
    check_backend_of(x, weight, backend)
    ops.check_input(x, weight)
    if weight_scale is not None and not config.packs:
        return functional.linear(x, two_scales(weight, weight_scale, config, share), bias)
    w_packed, scale, routed = codes_of(weight, weight_scale, config)
    if share < 1:
        blended = reference.straight_through(routed, mixed(weight, w_packed, scale, share))
        return functional.linear(blended_input(x, config.activation_bits or 0, share), blended, bias)
    if config.activation_bits == TERNARY:
        by = reference if backend == "python" else ops
        return ternary_product(x, w_packed, scale, bias, routed, by)
    return _product_of_codes(x, routed, w_packed, scale, bias, config.activation_bits or 0, backend)


def _product_of_codes(
    x: Tensor, weight: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None, activation_bits: int, backend: str
) -> Tensor:
    """The product with codes that were made of ``weight``, which takes their gradient."""
    op = torch.ops.bittorch.ternary_linear_ste.default
    if backend != "python" and not in_transform():
        return op(x, weight, w_packed, scale, bias, activation_bits)
    y = reference.ternary_linear_ste(x, weight, w_packed, scale, bias, activation_bits)
    if backend == "python":
        return y
    value = op(*detached(x, weight, w_packed, scale, bias), activation_bits)
    return reference.straight_through(y.to(value.dtype), value)  # vmap leaves products of torch out of autocast
