"""Three ways to add a low-rank matrix to a ternary layer: what each computes, and what it becomes when it is merged.

``D = k B A``, with A ``(r, in_features)`` and B ``(out_features, r)``, in float32:

======  ==================  ================================================  =================================
form    base                the layer computes                                merged
======  ==================  ================================================  =================================
beside  masters or packed   ``y + D x``                                       quantised again, with loss
grid    packed, one plane   codes ``c' = rint(clamp(c + D, -1, 1))``, scale s'  c' packed and s', bit for bit
inside  masters             ``Q(W + D)``                                      ``W + D``, bit for bit
======  ==================  ================================================  =================================
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from bittorch import ops
from bittorch.nn import TernaryLinear, TernaryLinearInference
from bittorch.nn.ternary_activations import ternary_product
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer
from bittorch.quant.ternary import TERNARY
from bittorch.quant.trit_planes import pack_trit_planes

Form = Literal["beside", "grid", "inside"]
FORMS: dict[str, tuple[type, ...]] = {
    "beside": (TernaryLinear, TernaryLinearInference),
    "grid": (TernaryLinearInference,),
    "inside": (TernaryLinear,),
}
_PASSES = 1.5  # where rounding and clamping pass the gradient on: half a step beyond the last code


class _GridCodes(torch.autograd.Function):
    """``rint(clamp(latent, -1, 1))``; the gradient passes where ``|latent| <= 1.5``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        return latent.clamp(-1, 1).round_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors
        return grad * (latent.abs() <= _PASSES)


def check_base(layer: object, form: str, name: str) -> None:
    """Raises TypeError or ValueError where a layer cannot have an adapter of that form."""
    if not isinstance(layer, FORMS[form]):
        kinds = " or a ".join(kind.__name__ for kind in FORMS[form])
        raise TypeError(f"an adapter {form!r} needs a {kinds}, but {name} is a {type(layer).__name__}")
    if form == "grid" and isinstance(layer, TernaryLinearInference) and layer.depth != 1:
        raise ValueError(
            f"an adapter 'grid' changes codes of one plane, but {name} has depth={layer.depth}; use 'beside'"
        )


def low_rank(a: Tensor, b: Tensor, k: float) -> Tensor:
    """``k B A`` in float32, in autocast too: a merge must find what the layer computed."""
    with torch.autocast(a.device.type, enabled=False):
        return k * (b.float() @ a.float())


def beside(x: Tensor, y: Tensor, a: Tensor, b: Tensor, k: float) -> Tensor:
    """``y + k B A x``."""
    small = functional.linear(functional.linear(x, a.to(x.dtype)), b.to(x.dtype))
    return y + (k * small).to(y.dtype)


def _codes(layer: TernaryLinearInference, delta: Tensor) -> Tensor:
    """``rint(clamp(c + delta, -1, 1))`` as float32."""
    codes = ops.ternary_unpack(layer.weight_packed, None, layer.in_features, torch.float32)
    result: Tensor = _GridCodes.apply(codes + delta)
    return result


def _expanded(scale: Tensor, columns: int) -> Tensor:
    """The scale as a factor of the codes."""
    if scale.dim() == 1:
        return scale[:, None]
    return scale.repeat_interleave(columns // scale.shape[1], 1)


def grid(x: Tensor, layer: TernaryLinearInference, delta: Tensor, scale: Tensor) -> Tensor:
    """The packed product with codes ``rint(clamp(c + delta, -1, 1))`` and a scale of its own.

    The gradient of a code is ``scale`` times that of the dense weight, straight through; that of the scale is exact.
    """
    codes, scale = _codes(layer, delta), scale.float()
    dense = (codes * _expanded(scale, layer.in_features)).to(x.dtype)
    packed = ops.ternary_pack(codes.detach().to(torch.int8))
    if layer.activation_bits == TERNARY:
        return ternary_product(x, packed, scale.detach(), layer.bias, dense)
    return ops.ternary_linear_ste(x, dense, packed, scale.detach(), layer.bias, layer.activation_bits or 0)


def inside(x: Tensor, layer: TernaryLinear, delta: Tensor) -> Tensor:
    """What the layer computes with ``weight + delta`` for its weight."""
    weight = layer.weight + delta.to(layer.weight.dtype)
    result: Tensor = functional_call(layer, {"weight": weight}, (x,))
    return result


@torch.no_grad()
def merged_grid(layer: TernaryLinearInference, delta: Tensor, scale: Tensor) -> TernaryLinearInference:
    """A packed layer that computes what `grid` does, bit for bit."""
    merged = copy.deepcopy(layer)
    merged.weight_packed = ops.ternary_pack(_codes(layer, delta).to(torch.int8))
    merged.scale = scale.detach().float().clone()
    return merged


@torch.no_grad()
def merged_inside(layer: TernaryLinear, delta: Tensor) -> TernaryLinear:
    """A training layer that computes what `inside` does, bit for bit."""
    merged = copy.deepcopy(layer)
    merged.weight.copy_(layer.weight + delta.to(layer.weight.dtype))
    return merged


@torch.no_grad()
def requantised(
    layer: TernaryLinear | TernaryLinearInference, delta: Tensor
) -> tuple[TernaryLinear | TernaryLinearInference, float]:
    """A layer of ``weight + delta``, quantised again, and the share of delta that survives in its weight.

    The share is ``<Q(W + D) - Q(W), D> / <D, D>``: 0 where the adapter is lost, 1 where it is kept.
    """
    before = layer.dequantized_weight().float()
    if isinstance(layer, TernaryLinear):
        merged: TernaryLinear | TernaryLinearInference = merged_inside(layer, delta)
    else:
        merged = copy.deepcopy(layer)
        merged.weight_packed, merged.scale = _quantised(layer, before + delta)
    kept = (merged.dequantized_weight().float() - before).double()
    norm = float(delta.double().square().sum())
    return merged, float((kept * delta).sum()) / norm if norm else 1.0


def _quantised(layer: TernaryLinearInference, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed as the layer is: with its planes and groups, by the method of the least squared error."""
    granularity = {0: "tensor", 1: "channel"}.get(layer.groups, "group")
    group_size = layer.in_features // layer.groups if layer.groups > 1 else None
    config = TernaryQuantConfig(method="optimal", granularity=granularity, group_size=group_size)  # type: ignore[arg-type]
    if layer.depth != 1:
        return pack_trit_planes(weight, layer.depth, *config.grouping)
    return TernaryQuantizer(config).quantize_packed(weight)
