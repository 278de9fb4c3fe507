"""Trits to packed 2-bit rows."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_matrix


def ternary_pack(codes: Tensor, check: bool = True) -> Tensor:
    """Packs ternary codes four to a byte, least significant bits first.

    ``packed[r, j] = c0 | c1 << 2 | c2 << 4 | c3 << 6`` with ``00 = 0, 01 = +1, 10 = -1`` for the codes of columns
    4j..4j+3; a row is padded with 00 to a whole byte.

    Args:
        codes: ``(out_features, in_features)`` int8, each -1, 0 or +1.
        check: False leaves out the search for other values, which become the reserved code 11; it waits for the device.

    Returns:
        ``(out_features, ceil(in_features / 4))`` uint8.

    Raises:
        TypeError: ``codes`` is not int8.
        ValueError: ``codes`` is not a matrix, or holds another value; the message names its row and column.
    """
    return torch.ops.bittorch.ternary_pack(codes, check)


@torch.library.register_fake("bittorch::ternary_pack")
def _(codes: Tensor, check: bool = True) -> Tensor:
    check_matrix("codes", codes)
    return codes.new_empty((codes.shape[0], (codes.shape[1] + 3) // 4), dtype=torch.uint8)
