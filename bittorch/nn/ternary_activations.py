"""Ternary activations against ternary weights (W1.58A1.58): trits by trits, exact sums, then both scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig

_OF_TOKENS = TernaryQuantConfig(method="twn").op_args()


def _tokens(x: Tensor) -> Tensor:
    """``(tokens, features)``, float64 in float32, as the quantisers take it."""
    rows = x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None]
    return rows.float() if rows.dtype == torch.float64 else rows


def fake_ternary(x: Tensor) -> Tensor:
    """The trits of each token times their scale, in the dtype of ``x``."""
    packed, scale = ops.ternary_quantize(_tokens(x), *_OF_TOKENS)
    return ops.ternary_unpack(packed, scale, x.shape[-1], torch.float32).to(x.dtype).view(x.shape)


@torch.no_grad()
def trits_by_trits(x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None, by: Any = ops) -> Tensor:
    """``y = (t @ codes^T) * (x_scale * scale) + bias``, with ``t, x_scale`` the trits and scales of the tokens.

    ``t, x_scale = ternary_quantize(x, "twn", "ls", 0.75, "channel")``, each token a row of its own. The
    sums are exact; with a scale per group, those of the groups are multiplied and added in order, in float32.

    Args:
        x: ``(..., in_features)`` floating.
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8.
        scale: float32 ``(1,)``, ``(out_features,)`` or ``(out_features, groups)``.
        bias: ``(out_features,)`` or None.
        by: `bittorch.ops`, or `bittorch.ops.reference`, the definition in plain torch.

    Returns:
        ``(..., out_features)`` in the dtype of ``x``.
    """
    tokens, x_scale = by.ternary_quantize(_tokens(x), *_OF_TOKENS)
    groups = scale.shape[1] if scale.dim() == 2 else 1
    columns = x.shape[-1] // max(groups, 1)
    y = torch.zeros((), device=x.device)
    for group in range(groups):
        part = slice(None) if groups == 1 else slice(group * columns // 4, (group + 1) * columns // 4)
        sums = by.bitplane_matmul(tokens[:, part].contiguous(), w_packed[:, part].contiguous(), columns)
        y = y + sums.float() * (x_scale[:, None] * (scale[:, group] if scale.dim() == 2 else scale))
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], len(w_packed))


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast casts activations to; None where it is off, or unknown as on meta."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def as_autocast(x: Tensor) -> Tensor:
    """``x`` as autocast gives it to a product."""
    dtype = autocast_dtype(x.device.type)
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


def ternary_product(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    routed: Tensor | None = None,
    by: Any = ops,
) -> Tensor:
    """`trits_by_trits`, with the gradients of the dense product of both dequantised, straight through.

    ``routed`` stands for the weight and takes its gradient; without it only ``x`` and ``bias`` have one.
    """
    x = as_autocast(x)
    value = trits_by_trits(x, w_packed, scale, bias, by)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, routed, bias))):
        return value
    dense = ops.ternary_unpack(w_packed, scale, x.shape[-1], torch.float32).to(x.dtype)
    if routed is not None:
        dense = reference.straight_through(routed.to(x.dtype), dense)
    x = reference.straight_through(x, fake_ternary(x))
    y = torch.nn.functional.linear(x, dense, None if bias is None else bias.to(x.dtype))
    return reference.straight_through(y, value)
