"""Where packed rows are not canonical."""

import torch
from torch import Tensor


def ternary_check(w_packed: Tensor, in_features: int) -> Tensor:
    """Finds the reserved code 11, and padding that is not 00.

    Args:
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8.
        in_features: columns of the dense matrix.

    Returns:
        ``(out_features,)`` int64: the first such column of each row, -1 where there is none. Columns from
        ``in_features`` on are padding.

    Raises:
        TypeError, ValueError: ``w_packed`` is not such a matrix.
    """
    return torch.ops.bittorch.ternary_check(w_packed, in_features)


def check_packed(w_packed: Tensor, in_features: int, name: str = "w_packed") -> None:
    """Raises ValueError with row and column where ``ternary_check`` finds something; waits for the device."""
    columns = ternary_check(w_packed, in_features)
    rows = torch.nonzero(columns >= 0)
    if len(rows) == 0:
        return
    row = int(rows[0])
    column = int(columns[row])
    code = int(w_packed[row, column // 4]) >> (2 * (column % 4)) & 3
    if column < in_features:
        raise ValueError(f"{name} holds the reserved code 11 at row {row}, column {column}; the weights are damaged")
    raise ValueError(
        f"{name} must pad rows with code 00 beyond in_features={in_features}, "
        f"got {code:02b} at row {row}, column {column}; the weights are damaged or in_features is wrong"
    )


@torch.library.register_fake("bittorch::ternary_check")
def _(w_packed: Tensor, in_features: int) -> Tensor:
    return w_packed.new_empty((w_packed.shape[0],), dtype=torch.int64)
