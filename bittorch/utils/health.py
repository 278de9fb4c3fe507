"""What export, `summary` and AccuracyDoctor warn of alike, beside layers that are never called."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.conversion_report import conversion_report

MOSTLY_ZERO = 0.95  # of the weights; ternary nets that train well have 0.3 to 0.6, sparse ones up to 0.8


def silent_share(codes: Tensor, weight: Tensor | None) -> float:
    """The share of weights whose code is 0. Weights that are 0 themselves do not count, where ``weight`` is known."""
    live = torch.ones_like(codes, dtype=torch.bool) if weight is None else weight.reshape(codes.shape) != 0
    count = int(live.sum())
    return int((live & (codes == 0)).sum()) / count if count else 0.0


def why_silent(layer: nn.Module, share: float) -> str:
    """What to say of a ternary layer whose `silent_share` is above `MOSTLY_ZERO`."""
    reason = "look at the weights that it was exported from"
    if isinstance(layer, TernaryLayer):
        reason = (
            "its learned scale does not fit its weights, and reset_scale() of the layer makes a new one"
            if layer.config.learned
            else "a few weights are far larger than the others"
        )
    return f"{share:.1%} of its codes are 0: {reason}"


def warn_of_health(model: nn.Module, silent: Mapping[str, str], stacklevel: int) -> None:
    """Warns of layers with hardly a code but 0, by name, and of a model less than half of whose matrices are ternary.

    Args:
        model: training or packed.
        silent: `why_silent` by the name of the layer.
        stacklevel: of the caller's caller, as in `warnings.warn`.
    """
    for name, reason in list(silent.items())[:5]:
        warnings.warn(f"{name or 'the model'}: {reason}", stacklevel=stacklevel)
    if rest := list(silent)[5:]:
        warnings.warn(f"nearly all codes of these layers are 0 too: {', '.join(rest)}", stacklevel=stacklevel)
    if complaint := conversion_report(model).complaint:
        warnings.warn(complaint, stacklevel=stacklevel)
