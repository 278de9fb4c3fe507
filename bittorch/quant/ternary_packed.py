"""The packed storage format in Python: four trits per byte, as docs/reference/ternary_format.md defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch import ops


def pack_ternary(w_tern: Tensor) -> Tensor:
    """Packs ternary weights, four per byte.

    ``packed[r, j] = c0 | c1 << 2 | c2 << 4 | c3 << 6`` with ``00 = 0, 01 = +1, 10 = -1``. A row is padded with 00.

    Args:
        w_tern: ``(out_features, in_features)`` of any real dtype, each value -1, 0 or +1.

    Returns:
        uint8 ``(out_features, ceil(in_features / 4))``.

    Raises:
        TypeError: a complex or boolean dtype.
        ValueError: another number of dimensions, or another value; the message names its row and column.
    """
    if w_tern.dtype == torch.bool or w_tern.is_complex():
        raise TypeError(f"w_tern must be real numbers, got {w_tern.dtype}")
    if w_tern.dim() != 2:
        raise ValueError(f"w_tern must be (out_features, in_features), got shape {tuple(w_tern.shape)}")
    codes = w_tern.to(torch.int8)
    bad = (codes != w_tern) | ((codes != 0) & (codes != 1) & (codes != -1))
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"w_tern must hold -1, 0 and +1 only, got {w_tern[row, column]} in row {row}, column {column}")
    return ops.ternary_pack(codes, check=False)


def unpack_ternary(packed: Tensor, in_features: int) -> Tensor:
    """The inverse of `pack_ternary`.

    Args:
        packed: uint8 ``(out_features, ceil(in_features / 4))``.
        in_features: columns of the dense matrix.

    Returns:
        int8 ``(out_features, in_features)`` of -1, 0 and +1.

    Raises:
        TypeError: ``packed`` is not uint8.
        ValueError: another shape, the reserved code 11, or padding that is not 00; the message names row and column.
    """
    ops.check_packed(packed, in_features, "packed")
    return ops.ternary_unpack(packed, None, in_features, torch.int8)
