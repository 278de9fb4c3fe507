"""Products of int8 activations, or their exact digits, with integers that are stored as planes of trits."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width, check_same_device


def trit_depth_linear(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    depth: int,
    activation_bits: int = 16,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    """``y = (q @ c^T) * (x_scale * scale) + bias`` with ``c = sum_i 3^i codes_i`` and the q of `act_quantize`.

    All planes are one product: ``|c| <= 121`` is an int8 operand, which is decoded once for the tokens of a tile. The
    sums are integers and exact, the epilogue is that of `ternary_linear_w2a8`: the same bits for every kernel, batch
    size and thread count. The sum of the planes' own products differs by the rounding of these.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16; in_features up to 2^16.
        w_packed: ``(depth * out_features, ceil(in_features / 4))`` uint8, the rows of the lowest plane first, as
            `bittorch.quant.pack_trit_planes` gives them.
        scale: float32 of the lowest plane, ``(1,)``, ``(out_features,)`` or ``(out_features, groups)``; plane i has
            3^i times that, by definition.
        bias: None or ``(out_features,)`` floating; added in float32.
        depth: 1 to 5.
        activation_bits: 8, 16 or 24.
        variant: ``auto``, ``baseline``, ``tiled`` or one of ``bittorch._C.kernels()``.
        norm_weight, norm_eps: as in `ternary_linear_w2a8`.

    Returns:
        ``(..., out_features)`` of the dtype of x.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, an unknown variant.
        NotImplementedError: CUDA, which has no kernel; a gradient, which the op has not.
    """
    return torch.ops.bittorch.trit_depth_linear(
        x, w_packed, scale, bias, depth, activation_bits, variant, norm_weight, norm_eps
    )


@torch.library.register_fake("bittorch::trit_depth_linear")
def _(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    depth: int = 1,
    activation_bits: int = 16,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    check_packed_width(w_packed, x.shape[-1])
    check_same_device(x=x, w_packed=w_packed, scale=scale, bias=bias, norm_weight=norm_weight)
    if not 1 <= depth <= 5:
        raise ValueError(f"depth must be from 1 to 5, got {depth}")
    if w_packed.shape[0] % depth:
        raise ValueError(f"w_packed must have a multiple of depth={depth} rows, got {w_packed.shape[0]}")
    return x.new_empty((*x.shape[:-1], w_packed.shape[0] // depth))
