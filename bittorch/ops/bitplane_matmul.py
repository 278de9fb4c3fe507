"""Products of trits with trits, by counting bits."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_codes, check_same_device
from bittorch.ops.bitplane_pack import plane_bytes


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
        TypeError: another dtype.
        ValueError: another layout, shapes that do not go together, too many columns.
        RuntimeError: tensors on different devices.
        NotImplementedError: no kernel for the device in this build.
    """
    return torch.ops.bittorch.bitplane_matmul(a, b, columns, layout)


@torch.library.register_fake("bittorch::bitplane_matmul")
def _(a: Tensor, b: Tensor, columns: int, layout: str = "rows") -> Tensor:
    check_same_device(a=a, b=b)
    if layout not in ("rows", "planes"):
        raise ValueError(f"layout must be 'rows' or 'planes', got {layout!r}")
    check_codes("a", a, columns)
    if layout == "rows":
        check_codes("b", b, columns)
    elif b.dim() != 2 or b.shape[1] != plane_bytes(columns):
        raise ValueError(
            f"b must be (rows, {plane_bytes(columns)}) uint8 planes for columns={columns}, got {list(b.shape)}"
        )
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)
