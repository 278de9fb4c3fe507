"""Int8 activations times packed ternary weights, exact in integers."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width, check_same_device


def ternary_linear_w2a8(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    variant: str = "auto",
) -> Tensor:
    """``y = (q @ codes^T) * (x_scale * scale) + bias`` with ``q, x_scale = act_quantize(x)``.

    The sums are int32 and exact, the epilogue is two float32 products, one sum and one cast without fused operations:
    every kernel, batch size, thread count and device gives the same bits.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16, quantised here; or int8 codes of `act_quantize`.
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8, codes 00, 01, 10 only; in_features up to 2^22.
        scale: float32 ``(1,)``, ``(out_features,)`` or ``(out_features, in_features / group_size)``.
        bias: None or ``(out_features,)`` floating; added in float32.
        x_scale: one float32 scale a token; with int8 ``x`` only.
        out_dtype: of the result; the dtype of ``x`` by default, required with int8 ``x``.
        variant: ``auto``, ``baseline``, ``tiled`` or one of `bittorch._C.kernels()`.

    Returns:
        ``(..., out_features)`` of ``out_dtype``. Differentiable once in a floating ``x`` (straight through the
        rounding) and in ``bias``.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, an unknown variant.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.ternary_linear_w2a8(
        x, w_packed, scale, bias, x_scale=x_scale, out_dtype=out_dtype, variant=variant
    )


@torch.library.register_fake("bittorch::ternary_linear_w2a8")
def _(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    variant: str = "auto",
) -> Tensor:
    check_packed_width(w_packed, x.shape[-1])
    check_same_device(x, w_packed=w_packed, scale=scale, bias=bias, x_scale=x_scale)
    return x.new_empty((*x.shape[:-1], w_packed.shape[0]), dtype=out_dtype or x.dtype)
