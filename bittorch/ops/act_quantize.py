"""Activations to int8 codes or digits with one scale per token."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_same_device


def act_quantize(
    x: Tensor, bits: int = 8, *, norm_weight: Tensor | None = None, norm_eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Quantises each row of ``x``, or of its root-mean-square norm, by its largest magnitude.

    8 bits, as BitNet W1.58A8 does, in float32: ``m = max(absmax(row), 1e-5)``,
    ``q = clamp(round_half_even(x * (127 / m)), -127, 127)``, ``scale = m / 127``.

    16 and 24 bits, in float64: ``m = absmax(row)``, ``q = clamp(round_half_even(x * (qmax / m)), -qmax, qmax)``,
    ``scale = m / qmax`` with ``qmax = 127 + 256 * 127 (+ 65536 * 127)``, and ``q = d0 + 256 d1 (+ 65536 d2)`` in
    balanced digits, each in [-128, 127].

    A row with a NaN or an infinity has codes 0 and scale NaN.

    With ``norm_weight``, `torch.nn.functional.rms_norm` is fused in: ``x / sqrt(mean(x^2) + norm_eps) * norm_weight``
    takes the place of ``x``, in float32 whatever the dtype of ``x``, with squares summed in float64 in an order that is
    the same on every device.

    Args:
        x: ``(..., in_features)`` float32, float16 or bfloat16.
        bits: 8, 16 or 24.
        norm_weight: None, or ``(in_features,)`` floating.
        norm_eps: added to the mean square.

    Returns:
        ``q`` and ``scale``. With 8 bits ``q`` is int8 of the shape of ``x`` and ``scale`` is ``(..., 1)`` float32, so
        that ``x`` is about ``q * scale``. With 16 and 24 bits ``q`` is int8 ``(..., bits / 8, in_features)``, the
        lowest digit first, and ``scale`` is ``(..., 1)`` float64.

    Raises:
        TypeError: another dtype.
        ValueError: a scalar, other bits, a norm of another size, an eps that is not positive.

    Source: Ma et al. 2024 (BitNet b1.58) for 8 bits; arXiv:1910.07467 for the norm.
    """
    return torch.ops.bittorch.act_quantize(x, bits, norm_weight, norm_eps)


@torch.library.register_fake("bittorch::act_quantize")
def _(x: Tensor, bits: int = 8, norm_weight: Tensor | None = None, norm_eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    check_same_device(x=x, norm_weight=norm_weight)
    digits = (bits // 8,) if bits > 8 else ()
    return (
        x.new_empty((*x.shape[:-1], *digits, x.shape[-1]), dtype=torch.int8),
        x.new_empty((*x.shape[:-1], 1), dtype=torch.float64 if digits else torch.float32),
    )
