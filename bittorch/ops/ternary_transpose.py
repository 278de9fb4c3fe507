"""Packed rows of the transposed matrix."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width


def ternary_transpose(w_packed: Tensor, in_features: int) -> Tensor:
    """The packed transpose: ``codes(result)[c, r] = codes(w_packed)[r, c]``.

    With it the gradient of a layer's input is a packed product too: ``grad_x = (g * scale) @ codes`` for one scale per
    output channel.

    Args:
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8.
        in_features: columns of the dense matrix.

    Returns:
        ``(in_features, ceil(out_features / 4))`` uint8, padded with 00.

    Raises:
        TypeError, ValueError: ``w_packed`` is not such a matrix.
    """
    return torch.ops.bittorch.ternary_transpose(w_packed, in_features)


@torch.library.register_fake("bittorch::ternary_transpose")
def _(w_packed: Tensor, in_features: int) -> Tensor:
    check_packed_width(w_packed, in_features)
    return w_packed.new_empty((in_features, (w_packed.shape[0] + 3) // 4))
