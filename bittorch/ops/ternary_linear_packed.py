"""Floating activations times packed ternary weights."""

import torch
from torch import Tensor

from bittorch._extension import has_cuda_ext
from bittorch.ops._fake import check_packed_width, check_same_device


def ternary_linear_packed(
    x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None = None, variant: str = "auto"
) -> Tensor:
    """``y = x @ (codes * scale)^T + bias``, accumulated in float32 and cast once to the dtype of ``x``.

    On a CPU every kernel, batch size and thread count gives the same bits; kernels for bfloat16 alone add in another
    order, which is one for every batch size and thread count. Under autocast ``x`` alone is cast.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16.
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8, codes 00, 01, 10 only.
        scale: float32 ``(1,)``, ``(out_features,)`` or ``(out_features, in_features / group_size)``.
        bias: None or ``(out_features,)`` floating; added in float32.
        variant: ``auto``, ``baseline``, ``tiled`` or one of ``bittorch._C.kernels()``.

    Returns:
        ``(..., out_features)`` of the dtype of ``x``. Differentiable in ``x`` and ``bias``, once.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, an unknown variant.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.ternary_linear_packed.default(x, w_packed, scale, bias, variant)


def ternary_linear_packed_forward(x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`ternary_linear_packed` with the kernel chosen automatically, under its older name."""
    return ternary_linear_packed(x, w_packed, scale, bias)


def has_packed_cuda_support() -> bool:
    """Whether `ternary_linear_packed` runs on CUDA here: this build has the kernels, and torch sees a device."""
    return has_cuda_ext() and torch.cuda.is_available()


@torch.library.register_fake("bittorch::ternary_linear_packed")
def _(x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None = None, variant: str = "auto") -> Tensor:
    check_packed_width(w_packed, x.shape[-1])
    check_same_device(x=x, w_packed=w_packed, scale=scale, bias=bias)
    return x.new_empty((*x.shape[:-1], w_packed.shape[0]))
