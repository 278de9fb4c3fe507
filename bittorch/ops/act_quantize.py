"""Activations to int8 codes or digits with one scale a token."""

import torch
from torch import Tensor


def act_quantize(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantises each row of ``x`` by its largest magnitude.

    8 bits, as BitNet W1.58A8 does, in float32: ``m = max(absmax(row), 1e-5)``,
    ``q = clamp(round_half_even(x * (127 / m)), -127, 127)``, ``scale = m / 127``.

    16 and 24 bits, in float64: ``m = absmax(row)``, ``q = clamp(round_half_even(x * (qmax / m)), -qmax, qmax)``,
    ``scale = m / qmax`` with ``qmax = 127 + 256 * 127 (+ 65536 * 127)``, and ``q = d0 + 256 d1 (+ 65536 d2)`` in
    balanced digits, each in [-128, 127].

    A row with a NaN or an infinity has codes 0 and scale NaN.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16.
        bits: 8, 16 or 24.

    Returns:
        8 bits: ``q`` int8 of the shape of ``x``, and ``scale`` ``(..., 1)`` float32: ``x`` is about ``q * scale``.
        16, 24 bits: ``q`` int8 ``(..., bits / 8, in_features)``, the lowest digit first, and ``scale`` ``(..., 1)``
        float64.

    Raises:
        TypeError: another dtype. ValueError: a scalar, other bits.

    Source: Ma et al. 2024 (BitNet b1.58) for 8 bits.
    """
    return torch.ops.bittorch.act_quantize(x, bits)


@torch.library.register_fake("bittorch::act_quantize")
def _(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    digits = (bits // 8,) if bits > 8 else ()
    return (
        x.new_empty((*x.shape[:-1], *digits, x.shape[-1]), dtype=torch.int8),
        x.new_empty((*x.shape[:-1], 1), dtype=torch.float64 if digits else torch.float32),
    )
