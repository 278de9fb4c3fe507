"""Products with rows of 16-bit floats, at the speed of reading them."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_in_features, check_same_device


def half_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x @ weight^T + bias`` with 16-bit weights, float32 activations and float32 sums.

    Made for few tokens: a row is read once, and products cost less than reading it. Sums have one order for every
    kernel, batch and thread count: 32 lanes of fused multiply-adds and one reduction tree.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16; it is widened to float32, not rounded to the dtype of
            the weight.
        weight: ``(out_features, in_features)`` float16 or bfloat16.
        bias: None or ``(out_features,)`` floating; added in float32.

    Returns:
        ``(..., out_features)`` of the dtype of x, rounded once.

    Raises:
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together.
        NotImplementedError: CUDA, which has no kernel; a gradient of x, which the op has not.
    """
    return torch.ops.bittorch.half_linear(x, weight, bias)


@torch.library.register_fake("bittorch::half_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    check_same_device(x=x, weight=weight, bias=bias)
    check_in_features(x, weight)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
