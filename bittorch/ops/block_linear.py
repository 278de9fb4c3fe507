"""Products with quantised blocks, which are decoded a few at a time."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device


def block_linear(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    """``y = x @ block_unpack(blocks)^T`` without the dense matrix.

    Weights are float32, decoded 256 at a time and used by up to 64 tokens. Sums are float32 in one order for every
    kernel, batch and thread count: 32 lanes, each product rounded before it is added, and one reduction tree.

    Args:
        x: ``(..., columns)`` float32, float16 or bfloat16; it is widened to float32, and the result rounded once.
        blocks, kind: as of `block_unpack`.

    Returns:
        ``(..., n)`` of the dtype of x.

    Raises:
        TypeError, ValueError: as `block_unpack`.
        RuntimeError: tensors on different devices.
        NotImplementedError: CUDA, which has no kernel; a gradient of x, which the op has not.
    """
    return torch.ops.bittorch.block_linear(x, blocks, kind)


@torch.library.register_fake("bittorch::block_linear")
def _(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    check_same_device(x=x, blocks=blocks)
    return x.new_empty((*x.shape[:-1], blocks.shape[0]))
