"""Packed 2-bit rows to dense values."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_packed_width, check_same_device


def ternary_unpack(w_packed: Tensor, scale: Tensor | None, in_features: int, dtype: torch.dtype) -> Tensor:
    """Decodes packed rows: ``y = cast(code * scale)``, or the bare codes when ``scale`` is None.

    The product is one float32 multiplication, then one cast to ``dtype``.

    Args:
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8.
        scale: None, or float32 ``(1,)``, ``(out_features,)`` or ``(out_features, in_features / group_size)``.
        in_features: columns of the dense matrix.
        dtype: float32, float16, bfloat16, or int8 without a scale.

    Returns:
        ``(out_features, in_features)`` of ``dtype``.

    Raises:
        TypeError: another dtype, or int8 with a scale.
        ValueError: shapes that do not go together.
    """
    return torch.ops.bittorch.ternary_unpack(w_packed, scale, in_features, dtype)


@torch.library.register_fake("bittorch::ternary_unpack")
def _(w_packed: Tensor, scale: Tensor | None, in_features: int, dtype: torch.dtype) -> Tensor:
    check_packed_width(w_packed, in_features)
    check_same_device(w_packed=w_packed, scale=scale)
    return w_packed.new_empty((w_packed.shape[0], in_features), dtype=dtype)
