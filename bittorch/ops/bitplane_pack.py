"""Packed codes to planes of magnitudes and signs."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_codes


def bitplane_pack(w_packed: Tensor, columns: int) -> Tensor:
    """The layout that `bitplane_matmul` multiplies: the same number of bits, rows padded to 512 trits.

    128 bytes ``c`` of a row become 64 of magnitudes, ``nonzero(c[j]) | nonzero(c[64 + j]) << 1`` with
    ``nonzero(v) = (v | v >> 1) & 0x55``, then 64 of signs, ``(c[j] >> 1 & 0x55) | (c[64 + j] & 0xaa)``: a bit where the
    trit is -1.

    Args:
        w_packed: ``(rows, ceil(columns / 4))`` uint8, codes as `ternary_pack` gives them.
        columns: trits of a row.

    Returns:
        ``(rows, 128 * ceil(columns / 512))`` uint8.

    Raises:
        TypeError, ValueError: ``w_packed`` is not such a matrix.
    """
    return torch.ops.bittorch.bitplane_pack(w_packed, columns)


def plane_bytes(columns: int) -> int:
    """Bytes of a row of ``columns`` trits in planes."""
    return 128 * ((columns + 511) // 512)


@torch.library.register_fake("bittorch::bitplane_pack")
def _(w_packed: Tensor, columns: int) -> Tensor:
    check_codes("w_packed", w_packed, columns)
    return w_packed.new_empty((w_packed.shape[0], plane_bytes(columns)))
