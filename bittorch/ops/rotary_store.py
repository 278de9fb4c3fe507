"""Rotary position embedding of new tokens, and their keys and values into a cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device


def rotary_store(
    heads: Tensor,
    kv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> None:
    """Turns queries and keys of new tokens in place, and writes keys and values to their slots of the cache.

    ``y[c] = x[c] * cos[c] + x[c'] * sin[c]`` for the first ``rotated`` columns c of each head of q and k, with c' the
    column of the other half; signs are in ``sin``. Each operation is float32 and rounds; for halves the first product
    is rounded to their dtype too. The cache gets what the heads then hold, in its own dtype.

    Args:
        heads: ``(tokens, heads + 2 * kv_heads, head_dim)`` float32, float16 or bfloat16, those of q, then k, then v,
            side by side in memory; the tokens of the sequences one behind the other. Written to.
        kv: ``(2, rows, kv_heads, capacity, head_dim)`` of any of these dtypes. Written to.
        cos, sin: ``(tokens, rotated)`` of the dtype of heads, ``rotated`` even; None both for no rotation.
        lengths, rows, counts: as of `decode_attention`, with any number of new tokens.

    Raises:
        TypeError: other dtypes.
        ValueError: shapes and strides that do not fit; rows, lengths or counts that the cache does not have.
        RuntimeError: tensors on different devices.
        NotImplementedError: CUDA, which has no kernel; a gradient, which the op has not.

    Source:
        RoFormer, arXiv:2104.09864, with halves in place of neighbours.
    """
    torch.ops.bittorch.rotary_store(heads, kv, cos, sin, lengths, rows, counts)


@torch.library.register_fake("bittorch::rotary_store")
def _(
    heads: Tensor,
    kv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> None:
    check_same_device(heads=heads, kv=kv, cos=cos, sin=sin)
