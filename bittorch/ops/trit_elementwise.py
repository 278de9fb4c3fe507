"""Functions of one trit or of two, on packed codes."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device, check_trit_rows


def trit_elementwise(a: Tensor, b: Tensor | None, function: str, columns: int) -> Tensor:
    """``y = function(a, b)`` for each trit, without unpacking.

    - ``neg``, ``abs``: ``-a``, ``|a|``; ``b`` is None.
    - ``add``, ``sub``: ``a + b``, ``a - b``, saturated: 1 + 1 = 1.
    - ``mul``: ``a * b``.
    - ``min``, ``max``: the smaller, the larger: Kleene's and, or.
    - ``consensus``: ``a`` where both are equal, else 0.
    - ``eq``, ``ne``, ``lt``, ``le``, ``gt``, ``ge``: 1 where it holds, else 0.

    Args:
        a, b: ``(rows, ceil(columns / 4))`` uint8, codes as `ternary_pack` gives them; one of them may have one row,
            which then stands for all. A row begins at a byte, at any address.
        function: a name of the list.
        columns: trits of a row. Padding of the result is 00.

    Returns:
        ``(rows, ceil(columns / 4))`` uint8. The reserved code 11 gives some code, without an error: `ternary_check`.

    Raises:
        TypeError: another dtype.
        ValueError: another function, shapes that do not go together, ``b`` missing or in vain.
        RuntimeError: tensors on different devices.
        NotImplementedError: no kernel for the device in this build.

    Source: Kleene 1952 for three-valued and, or; saturating addition is what balanced ternary logic calls "any".
    """
    return torch.ops.bittorch.trit_elementwise(a, b, function, columns)


@torch.library.register_fake("bittorch::trit_elementwise")
def _(a: Tensor, b: Tensor | None, function: str, columns: int) -> Tensor:
    check_same_device(a=a, b=b)
    return a.new_empty((check_trit_rows(columns, a, b), (columns + 3) // 4))
