"""Products of trits with trits, by counting bits."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device, check_trit_rows


def bitplane_matmul(a: Tensor, b: Tensor, columns: int, layout: str = "rows") -> Tensor:
    """``y[i, j] = sum_c a[i, c] * b[j, c]``, exact.

    With planes of magnitudes and signs a product of two rows is ``popcount(m) - 2 popcount(m & (sign_a ^ sign_b))``,
    ``m = magnitude_a & magnitude_b``. ``a`` is brought into planes in each call, and so is ``b`` in layout ``"rows"``.

    Args:
        a: ``(m, ceil(columns / 4))`` uint8, codes as `ternary_pack` gives them.
        b: ``(n, ceil(columns / 4))`` uint8 codes; in layout ``"planes"`` what `bitplane_pack` makes of them.
        columns: trits of a row, below 2^31.
        layout: of ``b``: ``"rows"`` or ``"planes"``.

    Returns:
        ``(m, n)`` int32.

    Raises:
        TypeError: another dtype. ValueError: another layout, shapes that do not go together, too many columns.
        RuntimeError: tensors on different devices. NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.bitplane_matmul(a, b, columns, layout)


@torch.library.register_fake("bittorch::bitplane_matmul")
def _(a: Tensor, b: Tensor, columns: int, layout: str = "rows") -> Tensor:
    check_same_device(a, b=b)
    if layout not in ("rows", "planes"):
        raise ValueError(f"layout must be 'rows' or 'planes', got {layout!r}")
    check_trit_rows(columns, a, None)
    if layout == "rows":
        check_trit_rows(columns, b, None)
    elif b.dim() != 2 or b.shape[1] != 128 * ((columns + 511) // 512):
        width = 128 * ((columns + 511) // 512)
        raise ValueError(f"b must be (rows, {width}) uint8 planes for columns={columns}, got {list(b.shape)}")
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)
