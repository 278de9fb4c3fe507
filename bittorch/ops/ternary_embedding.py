"""Rows of a packed table, gathered by index."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width, check_same_device


def ternary_embedding(
    indices: Tensor, w_packed: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype, depth: int = 1
) -> Tensor:
    """``y[i] = (codes * scale)[indices[i]]``, without decoding the rest of the table.

    A row of one plane is that of `ternary_unpack`: one float32 multiplication and one cast. With a depth, row ``r`` is
    the sum of rows ``r, n + r, 2 n + r, ...`` with ``n = rows / depth``, in float64, rounded to float32 and then to
    ``dtype``, as `bittorch.quant.unpack_trit_planes` decodes planes. Every kernel and device gives the same bits.

    Args:
        indices: ``(...)`` int64 or int32, each from 0 to ``rows / depth - 1``.
        w_packed: ``(rows, ceil(in_features / 4))`` uint8, codes 00, 01, 10 only.
        scale: float32 ``(1,)``, ``(rows,)`` or ``(rows, in_features / group_size)``.
        in_features: columns of a row, the dimension of the embedding.
        dtype: float32, float16 or bfloat16.
        depth: planes of the table, the lowest first, as `bittorch.quant.pack_trit_planes` makes them.

    Returns:
        ``(*indices.shape, in_features)`` of ``dtype``. Neither operand receives a gradient.

    Raises:
        IndexError: on a CPU, an index out of range; the message names it, its position and the number of rows. On CUDA
            its row of the result is NaN: the host does not wait for the device.
        TypeError, ValueError, RuntimeError: dtypes, shapes or devices that do not go together, a depth that does not
            divide the rows.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.ternary_embedding(indices, w_packed, scale, in_features, dtype, depth)


@torch.library.register_fake("bittorch::ternary_embedding")
def _(indices: Tensor, w_packed: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype, depth: int = 1) -> Tensor:
    check_packed_width(w_packed, in_features)
    check_same_device(indices=indices, w_packed=w_packed, scale=scale)
    return w_packed.new_empty((*indices.shape, in_features), dtype=dtype)
