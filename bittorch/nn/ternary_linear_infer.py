"""The deployed layer: packed 2-bit weights, nothing to train."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from bittorch import _env, ops
from bittorch.nn.packed_layer import PackedLayer, check_groups
from bittorch.nn.parts import check_not_sharded, no_float64
from bittorch.nn.ternary_activations import autocast_dtype, ternary_product
from bittorch.nn.ternary_layer import gathered
from bittorch.quant import TernaryQuantConfig
from bittorch.quant.ternary import TERNARY, ActivationBits
from bittorch.quant.trit_planes import check_grid, pack_trit_planes, unpack_trit_planes

_Norm = tuple[Tensor, float] | tuple[()]
_DEPTH_AT_ONCE, _COLUMNS_AT_ONCE = 5, 1 << 16  # what `bittorch.ops.trit_depth_linear` takes


class TernaryLinearInference(PackedLayer):
    """``y = x @ (codes * scale)^T + bias`` from packed codes.

    Buffers only: ``weight_packed`` ``(depth * out_features, ceil(in_features / 4))`` uint8, ``scale`` float32, ``bias``
    or None. ``.half()`` and ``.to(dtype)`` cast the bias and leave codes and scale as they are. ``x`` may be float32,
    float16 or bfloat16; the result has its dtype.

    ``layer(x, norm)`` is ``layer(norm(x))`` for an `torch.nn.RMSNorm`: where activations are quantised its arithmetic
    is part of the quantiser (`bittorch.ops.act_quantize`), in float32 and without a tensor in between.

    With a depth the rows are those of all planes of `bittorch.quant.pack_trit_planes`, the lowest first, and
    ``y = (y_0 + y_1 + ...) + bias`` with ``y_i`` the product with plane i: one call of the op, planes, sum and bias in
    float32 whatever the dtype of ``x``, and one cast. On a CPU, quantised activations meet up to five planes at once,
    as integers (`bittorch.ops.trit_depth_linear`); with gradients, on CUDA and with six planes they meet each alone,
    which rounds its share and differs by 1e-7. Plane i has 3^i times the scale of the lowest plane, by definition.

    Made by `bittorch.export_for_inference`, by ``quantize_model(model, depth=...)``, or empty, to be filled by
    ``load_state_dict``:

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`; dtype is that of the bias.
        groups: scales of a row: 0 for one scale per layer, 1 for one per row, more for groups of
            ``in_features / groups`` columns. Planes have scales of their own, so 0 goes with depth 1 alone.
        activation_bits: None for floating activations, else 8, 16, 24, or at depth 1 ``"ternary"``, as in
            `bittorch.TernaryQuantConfig`.
        depth: ternary planes of the weight, 1 to 6.

    Raises:
        TypeError: a depth that is not an integer.
        ValueError: groups that do not cut in_features into equal multiples of 4, an unknown activation_bits, a depth
            out of range.
        RuntimeError: from ``load_state_dict``: the reserved code 11, wrong padding, a scale that is not finite, or
            planes whose scales are not powers of 3 apart.
    """

    takes_trits = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        groups: int = 1,
        activation_bits: ActivationBits = None,
        depth: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_groups(groups, depth, in_features=in_features)
        super().__init__(out_features, in_features, bias, groups, activation_bits, device, dtype, depth)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        depth: int,
        config: TernaryQuantConfig | None = None,
        planes: tuple[Tensor, Tensor] | None = None,
    ) -> TernaryLinearInference:
        """The weight of ``linear`` as trit planes, without training.

        Args:
            linear: any linear layer; it is not touched, and its bias is copied.
            depth: planes, 1 to 6.
            config: granularity, group_size and activation_bits count. One scale for the tensor stands in each row.
            planes: packed rows and scales, where they are chosen already; of `bittorch.quant.pack_trit_planes`.

        Raises:
            TypeError: a depth that is not an integer, a weight that is not floating.
            ValueError: a depth out of range, a weight with NaN or Inf or on the meta device, groups that do not divide
                in_features, a config with a method, a threshold or a gradient of its own.
        """
        config = config or TernaryQuantConfig()
        check_grid(config)
        config.check_in_features(linear.in_features)
        weight = gathered(linear.weight).detach()
        if weight.device.type == "meta":
            raise ValueError("the weight is on the meta device and has no values; load them first")
        planes = pack_trit_planes(weight, depth, *config.grouping) if planes is None else planes
        sizes = linear.in_features, linear.out_features, linear.bias is not None
        layer = cls(*sizes, activation_bits=config.activation_bits, depth=depth, device="meta")
        layer.weight_packed, layer.scale = planes
        layer.weight_dtype = weight.dtype
        if linear.bias is not None:
            layer.bias = gathered(linear.bias).detach().clone()
        return layer.train(linear.training)

    @property
    def columns(self) -> int:
        return self.in_features

    @property
    def groups(self) -> int:
        """Scales of a row; 0 when the layer has a single one."""
        return self._scale_groups()

    def get_quantized_weight(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Codes and scale: ``(w_tern, scale)``.

        Returns:
            codes in {-1, 0, +1} of ``dtype``, ``(depth * out_features, in_features)``, and the float32 scale of these
            rows. At depth 1 `dequantized_weight` is their product, else the sum of it over the planes.
        """
        codes = ops.ternary_unpack(self.weight_packed, None, self.in_features, torch.int8)
        return codes.to(dtype), self.scale.clone()

    def dequantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense weight ``(out_features, in_features)`` that the layer multiplies by, rounded once to ``dtype``."""
        return unpack_trit_planes(self.weight_packed, self.scale, self.depth, self.in_features, dtype)

    @property
    def W_q(self) -> Tensor:
        """The packed codes, by a name from which PEFT knows that `dequantize` has the weight."""
        return self.weight_packed

    def dequantize(self) -> Tensor:
        """`dequantized_weight`, for PEFT."""
        return self.dequantized_weight()

    def forward(self, input: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
        norm_weight, norm_eps = None, None
        if norm is not None and not isinstance(norm, torch.fx.Proxy):  # as the root of a trace, which has none
            if self.activation_bits in (None, TERNARY) or norm.weight is None:
                check_width(input, self.in_features)
                input = norm(input)
            else:
                norm_weight, norm_eps = norm.weight, norm.eps
        buffers: dict[str, Any] = (
            self._buffers
        )  # an attribute of a module takes as long to find as a small layer to run
        weights = buffers["weight_packed"], buffers["scale"], buffers["bias"]
        return _product(input, *weights, self.in_features, self.depth, self.activation_bits, norm_weight, norm_eps)

    def extra_repr(self) -> str:
        parts = [f"in_features={self.in_features}", f"out_features={self.out_features}"]
        parts += [f"bias={self.bias is not None}", f"groups={self.groups}"]
        if self.activation_bits:
            parts.append(f"activation_bits={self.activation_bits}")
        if self.depth != 1:
            parts.append(f"depth={self.depth}")
        return ", ".join(parts)


@torch.fx.wrap
def check_width(x: Tensor, in_features: int) -> None:
    """Raises ValueError for another width: packed rows know theirs only to a whole byte."""
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"input must be (..., {in_features}), got {tuple(x.shape)}")


@torch.fx.wrap  # one node to torch.fx, which could not trace the check
def _product(
    x: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    in_features: int,
    depth: int,
    activation_bits: ActivationBits,
    norm_weight: Tensor | None,
    norm_eps: float | None,
) -> Tensor:
    check_not_sharded(x, weight_packed)
    check_width(x, in_features)
    norm: _Norm = ()
    if norm_weight is not None:
        norm = norm_weight, torch.finfo(x.dtype).eps if norm_eps is None else norm_eps
    if activation_bits == TERNARY:
        if x.dtype == torch.float64:
            raise TypeError(no_float64("input"))
        return ternary_product(x, weight_packed, scale, bias)
    if depth != 1:
        return _product_of_planes(x, weight_packed, scale, bias, depth, activation_bits, norm)
    weights = weight_packed, scale, bias
    if activation_bits is None:
        return torch.ops.bittorch.ternary_linear_packed.default(x, *weights, _env.INFER_VARIANT)
    return torch.ops.bittorch.ternary_linear_w2a8.default(
        x, *weights, None, None, activation_bits, _env.INFER_VARIANT, *norm
    )  # by position: keywords cost half a microsecond


def _product_of_planes(
    x: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    depth: int,
    activation_bits: int | None,
    norm: _Norm,
) -> Tensor:
    product = _integers_of_planes if _meet_at_once(x, bias, depth, activation_bits, norm) else _sum_of_planes
    rest = weight_packed, scale, bias, depth, activation_bits, norm
    if (dtype := autocast_dtype(x.device.type)) is None:
        return product(x, *rest)
    with torch.autocast(x.device.type, enabled=False):  # it would cast the float32 activations once more
        return product(x if x.dtype == torch.float64 else x.to(dtype), *rest)


def _meet_at_once(x: Tensor, bias: Tensor | None, depth: int, activation_bits: int | None, norm: _Norm) -> bool:
    """Whether there is a kernel for all planes together; it has no gradients."""
    if activation_bits is None or depth > _DEPTH_AT_ONCE or x.device.type != "cpu" or x.shape[-1] > _COLUMNS_AT_ONCE:
        return False
    inputs = (x, bias, norm[0] if norm else None)
    return not (torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs))


def _integers_of_planes(
    x: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    depth: int,
    activation_bits: int | None,
    norm: _Norm,
) -> Tensor:
    lowest = scale[: len(scale) // depth]
    y: Tensor = torch.ops.bittorch.trit_depth_linear.default(
        x, weight_packed, lowest, bias, depth, activation_bits, _env.INFER_VARIANT, *norm
    )
    return y


def _sum_of_planes(
    x: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    depth: int,
    activation_bits: int | None,
    norm: _Norm,
) -> Tensor:
    weights = weight_packed, scale, None
    if activation_bits is None:
        # The op gives the dtype of x, and planes rounded to 16 bits would lose 1.6 times what the last cast loses.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        rows = torch.ops.bittorch.ternary_linear_packed.default(wide, *weights, _env.INFER_VARIANT)
    else:
        rows = torch.ops.bittorch.ternary_linear_w2a8.default(
            x, *weights, None, torch.float32, activation_bits, _env.INFER_VARIANT, *norm
        )
    y, *higher = rows.chunk(depth, -1)
    for plane in higher:  # the smallest first: fewer large partial sums to round
        y = y + plane
    if bias is not None:
        y = y + (bias if bias.dtype == torch.float32 else bias.float())
    return y if x.dtype == torch.float32 else y.to(x.dtype)
