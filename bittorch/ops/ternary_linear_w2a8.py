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
    activation_bits: int = 8,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    """``y = (q @ codes^T) * (x_scale * scale) + bias`` with ``q, x_scale = act_quantize(x, activation_bits)``.

    The sums are integers and exact, the epilogue is two products, one sum and one cast without fused operations, in
    float32 for 8 bits and in float64 up to the bias for 16 and 24: every kernel, batch size, thread count and device
    gives the same bits. 16 and 24 bits are two and three int8 products with the digits of the activations.

    With ``norm_weight`` the codes are those of the root-mean-square norm of ``x``, which is never stored: see
    `act_quantize`.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16, quantised here; or int8 codes of `act_quantize`.
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8, codes 00, 01, 10 only; in_features up to 2^22.
        scale: float32 ``(1,)``, ``(out_features,)`` or ``(out_features, in_features / group_size)``.
        bias: None or ``(out_features,)`` floating; added in float32.
        x_scale: one float32 scale per token; with int8 ``x`` only.
        activation_bits: 8, 16 or 24; 8 with int8 ``x``.
        out_dtype: of the result; the dtype of ``x`` by default, required with int8 ``x``.
        variant: ``auto``, ``baseline``, ``tiled`` or one of ``bittorch._C.kernels()``.
        norm_weight: None, or ``(in_features,)`` floating; with floating ``x`` only.
        norm_eps: added to the mean square of a token.

    Returns:
        ``(..., out_features)`` of ``out_dtype``. Differentiable once in a floating ``x`` (straight through the
        rounding), in ``bias`` and in ``norm_weight``.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, an unknown variant.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.ternary_linear_w2a8.default(
        x, w_packed, scale, bias, x_scale, out_dtype, activation_bits, variant, norm_weight, norm_eps
    )


@torch.library.register_fake("bittorch::ternary_linear_w2a8")
def _(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    activation_bits: int = 8,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    check_packed_width(w_packed, x.shape[-1])
    check_same_device(x=x, w_packed=w_packed, scale=scale, bias=bias, x_scale=x_scale, norm_weight=norm_weight)
    return x.new_empty((*x.shape[:-1], w_packed.shape[0]), dtype=out_dtype or x.dtype)
