"""Which parameters weight decay is for."""

from __future__ import annotations

from typing import Any

from torch import nn

from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.wrappers import is_called


def parameter_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two groups for an optimiser: weights with decay; learned scales, biases and norms without.

    A learned scale is no weight: decay pulls it towards 0, and with it every code of its row away from 0.

    Args:
        model: of any kind; parameters that are frozen are left out, shared ones appear once.
        weight_decay: of the first group; the second has 0.

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``; a group without
        parameters is left out.

    Raises:
        ValueError: a negative weight_decay.
        TypeError: a model in FullyShardedDataParallel (FSDP1), whose parameters have one dimension each.

    Example::

        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    if any(is_called(module, "FullyShardedDataParallel") for module in model.modules()):
        raise TypeError(
            "the model is in FullyShardedDataParallel, which flattens matrices, so they cannot be told from biases; "
            "make the groups before wrapping it with use_orig_params=True, or shard with fully_shard"
        )
    layers = [module for module in model.modules() if isinstance(module, TernaryLayer)]
    scales = {id(layer.weight_scale) for layer in layers}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if parameter.dim() < 2 or id(parameter) in scales else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
