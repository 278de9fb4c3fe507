"""Ternary layers whose weights a model reads without calling the layer: they run dense, whatever they are called."""

from __future__ import annotations

import warnings

from torch import nn

from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.wrappers import named_layers

UNCALLED = (
    "was never called, though other ternary layers were: a model that reads the weight itself runs it dense. Leave "
    "such a layer out with skip=...; an expert or head that no input has reached yet is fine"
)


def uncalled_layers(model: nn.Module) -> list[str]:
    """Names of quantising layers whose forward never ran, where that of others did."""
    layers = [(name, m) for name, m in named_layers(model) if isinstance(m, TernaryLayer)]
    if not any(layer.forward_ran for _, layer in layers):
        return []
    return [name for name, layer in layers if layer.quantize and not layer.forward_ran]


def warn_of_uncalled(model: nn.Module, stacklevel: int) -> None:
    """Warns of such layers by name."""
    if names := uncalled_layers(model):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(f"{', '.join(names[:5])}{more} {UNCALLED}", stacklevel=stacklevel)
