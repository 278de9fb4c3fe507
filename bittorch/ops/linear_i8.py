"""Products of int8 activations, or their exact digits, with int8 rows."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_in_features, check_same_device


def linear_i8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation_bits: int = 16,
    variant: str = "auto",
) -> Tensor:
    """``y = (q @ weight^T) * (x_scale * scale) + bias`` with ``q, x_scale = act_quantize(x, activation_bits)``.

    The sums are integers and exact, the epilogue is that of `ternary_linear_w2a8`: the same bits for every kernel,
    batch size, thread count and device. 16 and 24 bits are two and three int8 products.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16.
        weight: ``(out_features, in_features)`` int8, all 256 values; in_features up to 2^16.
        scale: float32 ``(out_features,)``.
        bias: None or ``(out_features,)`` floating; added in float32.
        activation_bits: 8, 16 or 24.
        variant: ``auto``, ``baseline``, ``tiled``, one of ``bittorch._C.kernels()``, or ``matmul``: torch's product of
            some columns at a time, which is what CUDA has.

    Returns:
        ``(..., out_features)`` of the dtype of x.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, an unknown variant.
        NotImplementedError: a gradient of x, which the op has not.
    """
    return torch.ops.bittorch.linear_i8(x, weight, scale, bias, activation_bits, variant)


@torch.library.register_fake("bittorch::linear_i8")
def _(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation_bits: int = 16,
    variant: str = "auto",
) -> Tensor:
    check_same_device(x=x, weight=weight, scale=scale, bias=bias)
    check_in_features(x, weight)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
