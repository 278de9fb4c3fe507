"""How many trits of a row are +1 and how many are -1."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device, check_trit_rows


def trit_reduce(a: Tensor, b: Tensor | None, columns: int) -> Tensor:
    """Counts of +1 and of -1 in each row of ``a``, or of the products of the trits of ``a`` and ``b``.

    ``sum = plus - minus``, ``sum of magnitudes = plus + minus``, ``zeros = columns - plus - minus``; with ``b``
    ``dot product = plus - minus``. All are exact.

    Args:
        a, b: ``(rows, ceil(columns / 4))`` uint8, codes as `ternary_pack` gives them; one of them may have one row,
            which then stands for all. ``b`` may be None.
        columns: trits of a row.

    Returns:
        ``(rows, 2)`` int64: plus, minus.

    Raises:
        TypeError: another dtype.
        ValueError: shapes that do not go together.
        RuntimeError: tensors on different devices.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.trit_reduce(a, b, columns)


@torch.library.register_fake("bittorch::trit_reduce")
def _(a: Tensor, b: Tensor | None, columns: int) -> Tensor:
    check_same_device(a=a, b=b)
    return a.new_empty((check_trit_rows(columns, a, b), 2), dtype=torch.int64)
