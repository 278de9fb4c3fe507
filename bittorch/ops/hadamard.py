"""Blocks of a Walsh-Hadamard transform."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device


def hadamard(x: Tensor, block_size: int, sign_before: Tensor | None = None, sign_after: Tensor | None = None) -> Tensor:
    """``y = sign_after * (H @ (sign_before * x)) / sqrt(block_size)`` for each block of ``block_size`` columns.

    ``H[r, c] = (-1)^popcount(r & c)`` in natural order (Sylvester): ``H_2n = [[H_n, H_n], [H_n, -H_n]]``.
    The matrix is orthogonal: the op with ``sign_before`` and ``sign_after`` exchanged is its inverse and its transpose,
    and without signs it is its own. Sums are float32 in one order, widest steps first, so every kernel and device gives
    the same bits; the result is scaled and cast once.

    Args:
        x: ``(..., columns)`` float32, float16 or bfloat16.
        block_size: a power of two from 1 to 32768 that divides the columns.
        sign_before, sign_after: None, or ``(columns,)`` int8, each 1 or -1.

    Returns:
        A tensor like ``x``. Differentiable in ``x``, by ``backward()`` any number of times.

    Raises:
        TypeError: another dtype of ``x`` or a sign.
        ValueError: a block_size that is no power of two, too large, or does not divide the columns; signs of another
            length; on a CPU, a sign that is neither 1 nor -1, with its column. On CUDA its block of the result is NaN:
            the host does not wait for the device.
        RuntimeError: tensors on different devices.
        NotImplementedError: no kernel for the device in this build.

    Source: Sylvester 1867; Chee et al. 2023 (QuIP) and Ashkboos et al. 2024 (QuaRot) for rotations with signs.
    """
    return torch.ops.bittorch.hadamard(x, block_size, sign_before, sign_after)


@torch.library.register_fake("bittorch::hadamard")
def _(x: Tensor, block_size: int, sign_before: Tensor | None = None, sign_after: Tensor | None = None) -> Tensor:
    check_same_device(x=x, sign_before=sign_before, sign_after=sign_after)
    if block_size < 1 or x.shape[-1] % block_size:
        raise ValueError(
            f"block_size must divide the last dimension of x, got block_size={block_size} and {x.shape[-1]} columns"
        )
    return x.new_empty(x.shape)
