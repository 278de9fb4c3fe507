"""Rows of quantised blocks, as GGUF files hold them, to floats."""

import torch
from torch import Tensor


def block_unpack(blocks: Tensor, kind: str, columns: int, dtype: torch.dtype) -> Tensor:
    """``y = code * scale - least``, each of the two operations rounded to float32, then one cast to ``dtype``.

    Codes are integers of 2 to 8 bits. A scale, and for some types a least value, belongs to 16 or more columns; it is a
    float16 of the block, or such a float16 times an integer of the block, rounded to float32. Every kernel gives the
    same bits, which are those of gguf-py.

    Args:
        blocks: ``(n, bytes)`` uint8; each row is ``columns`` weights in whole blocks.
        kind: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, Q2_0 (blocks of 64) or
            Q2_0_128.
        columns: of the result.
        dtype: float32, float16 or bfloat16.

    Returns:
        ``(n, columns)`` of ``dtype``. Without a gradient.

    Raises:
        TypeError: blocks that are not uint8, another dtype.
        ValueError: a kind that is not known; columns that are not whole blocks; rows of another length.
        NotImplementedError: CUDA, which has no kernel.

    Source: the layouts of ggml, as gguf-py 0.19 decodes them.
    """
    return torch.ops.bittorch.block_unpack(blocks, kind, columns, dtype)


@torch.library.register_fake("bittorch::block_unpack")
def _(blocks: Tensor, kind: str, columns: int, dtype: torch.dtype) -> Tensor:
    return blocks.new_empty((blocks.shape[0], columns), dtype=dtype)
