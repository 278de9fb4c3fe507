"""Floating weights to packed codes and scales, in one pass."""

import torch
from torch import Tensor

from bittorch.ops import reference
from bittorch.ops._fake import check_matrix


def ternary_quantize(
    w: Tensor, method: str, scale_rule: str, threshold_factor: float, granularity: str, group_size: int = 0
) -> tuple[Tensor, Tensor]:
    """Quantises and packs a weight matrix; `bittorch.quant.ternary_quantize` is the friendlier form.

    With ``a = |w|`` over the elements that share a scale and ``f = threshold_factor``, a code is ``sign(w)`` where

    ========== ==============================================================
    max        ``a > f * max(a)``
    twn        ``a > f * mean(a)``
    absmean    ``a / max(mean(a), 1e-5) > f``      (f = 0.5: round to nearest)
    absmedian  ``a / max(median(a), 1e-5) > f``    (the lower median)
    optimal    the k largest, k maximising ``(their sum)^2 / k``; f is unused
    nm34       ``a`` is not 0 nor the smallest of its four columns; f is unused
    ========== ==============================================================

    and 0 elsewhere. Scale: ``ls`` the mean of the kept ``a``, ``mean`` the mean of all, ``max`` the largest, ``rms``
    ``sqrt(sum(a^2) / kept)`` over all ``a``, so that the codes times the scale have the norm of ``w``, but no more than
    the dtype of ``w`` holds. Sums are in float64 and rounded once. A group that keeps nothing has scale 1e-5 with
    ``ls`` and ``rms``; so has an all-zero group with any rule. A non-finite group has codes 0 and scale NaN, so that
    the product is NaN without waiting for the device.

    Args:
        w: ``(out_features, in_features)`` float32, float16 or bfloat16.
        method, scale_rule: as above.
        threshold_factor: in [0, 1].
        granularity: what shares a scale: ``tensor``, ``channel`` (a row) or ``group`` (``group_size`` columns).
        group_size: a multiple of 4 that divides in_features; read with granularity ``group`` only.

    Returns:
        ``w_packed`` ``(out_features, ceil(in_features / 4))`` uint8, and ``scale`` float32 ``(1,)``,
        ``(out_features,)`` or ``(out_features, in_features / group_size)``. Neither carries a gradient.

    Raises:
        TypeError, ValueError: another dtype, shape, name or value; the message names both.

    Source: Li et al. 2016 (TWN); Ma et al. 2024 (BitNet b1.58, absmean); Huang et al. 2025 (Sherry, 3:4 sparse).
    """
    return torch.ops.bittorch.ternary_quantize(w, method, scale_rule, threshold_factor, granularity, group_size)


@torch.library.register_fake("bittorch::ternary_quantize")
def _(
    w: Tensor, method: str, scale_rule: str, threshold_factor: float, granularity: str, group_size: int
) -> tuple[Tensor, Tensor]:
    check_matrix("w", w)
    n, k = w.shape
    scale = w.new_empty(reference.scale_shape(n, k, granularity, group_size), dtype=torch.float32)
    return w.new_empty((n, (k + 3) // 4), dtype=torch.uint8), scale
