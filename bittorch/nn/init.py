"""First weights of ternary layers."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from bittorch.nn.learned_scale import gathered
from bittorch.nn.ternary_layer import TernaryLayer

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def norm_preserving_(module: Module) -> Module:
    """Makes the gain of first weights that of dense layers: ``||Q(W)||`` becomes the norm that W was drawn with.

    Most scale rules give a quantised weight another norm than the weight has: ``ls`` a smaller one, ``max`` a larger
    one. Each layer then shrinks or amplifies its signals and gradients, and without normalisation the factors of the
    layers multiply. With ``scale="rms"`` the norms are equal for any weights, and this function changes nothing.

    The weights that share a scale are multiplied by ``||W|| / ||Q(W)||``, once. Their codes stay the same, so the layer
    computes what it would compute with ``scale="rms"``. A learned scale follows.

    ``TernaryLinear.reset_parameters`` does this by itself, and so does the constructor. Call it after initialising the
    weights of ternary layers yourself, and after `bittorch.quantize_` of a model that was never trained. Weights that
    it has stretched before and that did not change since are left alone. Never call it on trained weights: their
    norm is part of what was learned.

    Args:
        module: a ternary layer, or a model with such layers. Layers with ``quantize=False``, parametrised weights,
            weights on the meta device, and weights that a module of another kind uses too (an embedding tied to a
            head) stay as they are.

    Returns:
        ``module``.

    Raises:
        ValueError: a weight holds NaN or Inf, or the learned scale of a layer was trained or loaded. Layers before it
            are stretched then.

    >>> model = bittorch.nn.init.norm_preserving_(bittorch.quantize_model(nn.Sequential(nn.Linear(64, 64))))
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, TernaryLayer)}
    done = {
        id(parameter)
        for other in module.modules()
        if not isinstance(other, TernaryLayer)
        for parameter in other.parameters(recurse=False)
    }
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        if weight is None or weight.is_meta or not layer.quantize or id(weight) in done:
            continue
        done.add(id(weight))
        where = name or "the layer"
        if layer.weight_scale is not None and not layer._scale_follows:
            raise ValueError(
                f"the scale of {where} was trained or loaded, so its weights are not first ones; reset_scale() of the "
                "layer makes it follow the weights again"
            )
        if not bool(torch.isfinite(gathered(weight)).all()):
            raise ValueError(f"the weight of {where} must be finite, got NaN or Inf")
        layer._preserve_norm()
    return module
