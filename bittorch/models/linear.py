"""Linear layers from what a checkpoint holds: ternary ones packed, others dense, several as one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.models.norm import RMSNorm
from bittorch.models.packed_weight import PackedWeight
from bittorch.nn import TernaryEmbeddingInference, TernaryLinearInference
from bittorch.nn.packed_layer import groups_of

FEW_TOKENS = 4  # up to here torch's product of 16-bit floats is the slower one on a CPU


def normed(linear: nn.Module, norm: nn.Module, x: Tensor, fuse: bool) -> Tensor:
    """``linear(norm(x))``; with ``fuse`` a packed layer takes the norm into its quantiser, which rounds once less."""
    if fuse and isinstance(linear, TernaryLinearInference) and isinstance(norm, RMSNorm):
        output: Tensor = linear(x, norm)
    else:
        output = linear(norm(x))
    return output


class HalfLinear(nn.Linear):
    """`torch.nn.Linear` with 16-bit weights, under activations of their dtype or wider ones.

    On a CPU `bittorch.ops.half_linear` multiplies few tokens, at the speed of reading the weight, and wider
    activations, which it does not round. Elsewhere these are rounded to the dtype of the weight, and the result is
    widened.
    """

    def forward(self, input: Tensor) -> Tensor:
        few = input.numel() <= FEW_TOKENS * self.in_features or input.dtype != self.weight.dtype
        half = self.weight.dtype in (torch.float16, torch.bfloat16)  # not after ``.float()``
        if few and half and input.device.type == "cpu" and not (torch.is_grad_enabled() and input.requires_grad):
            return ops.half_linear(input, self.weight, self.bias)
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class Concatenated(nn.Module):
    """Layers with one input whose outputs stand side by side: for parts that no single layer can hold."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


class NormedParts(nn.Module):
    """Layers with one input, each with a norm of it, whose outputs stand side by side.

    Args:
        parts: the layers.
        norms: of each.
        fuse: as of `normed`.
    """

    def __init__(self, parts: Sequence[nn.Module], norms: Sequence[nn.Module], fuse: bool) -> None:
        super().__init__()
        self.parts, self.norms, self.fuse = nn.ModuleList(parts), nn.ModuleList(norms), fuse

    def forward(self, x: Tensor) -> Tensor:
        found = [normed(part, norm, x, self.fuse) for part, norm in zip(self.parts, self.norms, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


def fuse_packed(parts: Sequence[PackedWeight], device: torch.device) -> PackedWeight:
    """One packed matrix whose outputs are those of the parts, side by side, bit for bit.

    Plane i of the result is plane i of every part. A scale for the tensor becomes one for each of its rows, which is
    multiplied as before.

    Args:
        parts: of one in_features, one depth, and one number of scales per row.
        device: where the result lies; several parts are copied there once, a single one, and those that lie one behind
            the other in memory, only from another device.
    """
    depth = parts[0].depth
    if len(parts) == 1:
        part = parts[0]
        return PackedWeight(part.weight_packed.to(device), part.scale.to(device), part.in_features, depth)
    codes = [part.weight_packed for part in parts]
    scales = [part.scale.expand(depth * part.out_features) if part.scale.numel() == 1 else part.scale for part in parts]
    whole = _in_one_piece(codes) if depth == 1 else None
    packed = _planes_side_by_side(codes, depth, device) if whole is None else whole.to(device)
    return PackedWeight(packed, _planes_side_by_side(scales, depth, device), parts[0].in_features, depth)


def _in_one_piece(parts: Sequence[Tensor]) -> Tensor | None:
    """Rows of one tensor that stand one behind the other there, as one; None where they do not."""
    first, rows = parts[0], sum(len(part) for part in parts)
    ends = itertools.accumulate((part.nbytes for part in parts), initial=first.data_ptr())
    for part, place in zip(parts, ends, strict=False):
        storage = part.untyped_storage().data_ptr()
        if (part.data_ptr(), storage) != (place, first.untyped_storage().data_ptr()) or not part.is_contiguous():
            return None
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def _planes_side_by_side(parts: Sequence[Tensor], depth: int, device: torch.device) -> Tensor:
    """The rows of each plane of all parts, plane by plane, in new memory."""
    rows = [len(part) // depth for part in parts]
    out = torch.empty((depth, sum(rows), *parts[0].shape[1:]), dtype=parts[0].dtype, device=device)
    for part, place in zip(parts, out.split(rows, 1), strict=True):
        place.copy_(part.unflatten(0, (depth, -1)))
    return out.flatten(0, 1)


def split_packed(fused: PackedWeight, rows: Sequence[int]) -> list[PackedWeight]:
    """The inverse of `fuse_packed`; scales that are one value come back as one."""
    packed = fused.weight_packed.unflatten(0, (fused.depth, -1)).split(list(rows), 1)
    if fused.scale.numel() == 1:
        scales: Sequence[Tensor] = [fused.scale] * len(rows)
    else:
        scales = [s.flatten(0, 1) for s in fused.scale.unflatten(0, (fused.depth, -1)).split(list(rows), 1)]
    parts = []
    for weight, scale in zip(packed, scales, strict=True):
        if fused.depth == 1 and scale.dim() == 1 and len(scale) > 1 and bool((scale == scale[0]).all()):
            scale = scale[:1]
        parts.append(PackedWeight(weight.flatten(0, 1), scale, fused.in_features, fused.depth))
    return parts


def packed_linear(
    weights: Sequence[PackedWeight],
    bias: Tensor | None,
    *,
    activation_bits: int | None,
    device: torch.device,
) -> nn.Module:
    """`TernaryLinearInference` of the weights side by side, without a dense copy of any.

    Args:
        weights: one or more, of one in_features.
        bias: of all rows, or None.
        activation_bits: as in `bittorch.nn.TernaryLinearInference`.
        device: of the layer.
    """
    if len({(part.depth, part.scale.shape[1:]) for part in weights}) > 1:  # planes and groups must go in step
        rows = [part.out_features for part in weights]
        biases: Sequence[Tensor | None] = [None] * len(rows) if bias is None else bias.split(rows)
        return Concatenated(
            [
                packed_linear([part], own, activation_bits=activation_bits, device=device)
                for part, own in zip(weights, biases, strict=True)
            ]
        )
    fused = fuse_packed(weights, device)
    layer = TernaryLinearInference(
        fused.in_features,
        fused.out_features,
        bias is not None,
        activation_bits=activation_bits,
        depth=fused.depth,
        device="meta",
    )
    layer.weight_packed, layer.scale = fused.weight_packed, fused.scale
    if bias is not None:
        layer.bias = bias.to(device)
    return layer.eval()


def packed_embedding(weight: PackedWeight, *, device: torch.device, dtype: torch.dtype) -> TernaryEmbeddingInference:
    """`TernaryEmbeddingInference` of these rows, whose results are of ``dtype``; without a dense copy."""
    groups = groups_of(weight.weight_packed, weight.scale)
    layer = TernaryEmbeddingInference(
        weight.out_features, weight.in_features, groups=groups, depth=weight.depth, device="meta", dtype=dtype
    )
    layer.weight_packed, layer.scale = weight.weight_packed.to(device), weight.scale.to(device)
    return layer.eval()


def head_of(weight: Tensor) -> nn.Linear:
    """The dense head of this very weight."""
    return linear_of(weight, kind=nn.Linear if weight.dtype == torch.float32 else HalfLinear)


def dense_linear(
    weights: Sequence[Tensor], bias: Tensor | None, *, device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    """`nn.Linear` of the weights side by side; made without initial values."""
    rows = [len(weight) for weight in weights]
    if len(weights) == 1:
        weight = weights[0].to(device=device, dtype=dtype)
    else:
        weight = torch.empty((sum(rows), weights[0].shape[1]), device=device, dtype=dtype)
        for part, own in zip(weight.split(rows), weights, strict=True):
            part.copy_(own)
    return linear_of(weight, None if bias is None else bias.to(device=device, dtype=dtype))


def linear_of(weight: Tensor, bias: Tensor | None = None, *, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """``kind`` with this very weight; its constructor would draw initial values from the caller's generator."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return layer.eval()
