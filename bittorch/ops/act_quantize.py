"""Activations to int8 with one scale a token."""

import torch
from torch import Tensor


def act_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row of ``x`` by its largest magnitude, as BitNet W1.58A8 does.

    ``m = max(absmax(row), 1e-5)``, ``q = clamp(round_half_even(x * (127 / m)), -127, 127)``, ``scale = m / 127``, all
    in float32. A row with a NaN or an infinity has codes 0 and scale NaN.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16.

    Returns:
        ``q`` int8 of the shape of ``x``, and ``scale`` ``(..., 1)`` float32: ``x`` is about ``q * scale``.

    Raises:
        TypeError: another dtype. ValueError: a scalar.

    Source: Ma et al. 2024 (BitNet b1.58).
    """
    return torch.ops.bittorch.act_quantize(x)


@torch.library.register_fake("bittorch::act_quantize")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format),
        x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
    )
