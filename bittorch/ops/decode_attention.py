"""Attention of a few new tokens to a cache of keys and values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device


def decode_attention(
    q: Tensor,
    kv: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    window: int = 0,
    scale: float | None = None,
) -> Tensor:
    """``softmax(scale q k^T) v`` for the last tokens of sequences, each causal and on a row of the cache of its own.

    A head of keys and values serves ``heads / kv_heads`` heads of queries side by side. On a CPU all is float32: the
    result is rounded once, and does not depend on the kernel, the number of threads, or the other sequences and tokens
    of the call. The cache is read once, cut into splits of 256 slots that threads share. On CUDA it is torch's
    `torch.nn.functional.scaled_dot_product_attention`, a call for each sequence, with the cache in the dtype of ``q``.

    A token that sees no finite score gives 0. NaN, and infinite scores above, give NaN as they do in a softmax. What
    lies in slots that no token sees is not read.

    Args:
        q: ``(tokens, heads, head_dim)`` float32, float16 or bfloat16: the new tokens of the sequences, one sequence
            behind the other; head_dim up to 512.
        kv: ``(2, rows, kv_heads, capacity, head_dim)`` of any of these dtypes: keys and values, which hold those of
            the new tokens already. Multiples of 16 of head_dim have the fast kernels.
        lengths: of each sequence, tokens in its row, the new ones included.
        rows: of each; all in order by default.
        counts: of each, how many tokens are new, up to 8; 1 by default.
        window: a token sees itself and so many before it; 0 for all.
        scale: None for ``1 / sqrt(head_dim)``.

    Returns:
        A tensor like ``q``.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes that do not fit, rows, lengths or counts that the cache does not have, a negative window, a
            scale that is not finite.
        RuntimeError: tensors on different devices.
        NotImplementedError: a gradient, which the op has not.

    Source:
        FlashAttention, arXiv:2205.14135, for the softmax in parts; Flash-Decoding for splits of the context.
    """
    return torch.ops.bittorch.decode_attention(q, kv, lengths, rows, counts, window, scale)


@torch.library.register_fake("bittorch::decode_attention")
def _(
    q: Tensor,
    kv: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    window: int = 0,
    scale: float | None = None,
) -> Tensor:
    check_same_device(q=q, kv=kv)
    if q.dim() != 3 or kv.dim() != 5 or kv.shape[0] != 2:
        raise ValueError(
            "q must be (tokens, heads, head_dim) and kv (2, rows, kv_heads, capacity, head_dim), got "
            f"{tuple(q.shape)} and {tuple(kv.shape)}"
        )
    return q.new_empty(q.shape)
