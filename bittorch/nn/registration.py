"""What happens when a ternary layer takes its place in a model, or loses it."""

from __future__ import annotations

import warnings

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from bittorch.nn.adapters import keep_apart
from bittorch.nn.packed_layer import PackedLayer
from bittorch.nn.ternary_layer import TernaryLayer

_TERNARY = (TernaryLayer, PackedLayer)
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
_SLOTS = ("linear1", "linear2")


def _calls_its_layers(encoder_layer: nn.Module) -> None:
    encoder_layer.activation_relu_or_gelu = 0  # type: ignore[assignment]  # what torch sets for other activations


def call_ternary_layers(model: nn.Module) -> None:
    """Makes torch's encoder call its ternary layers: its fast path in eval reads their weights, and runs them dense.

    ``activation_relu_or_gelu = 0`` on a `torch.nn.TransformerEncoderLayer` is what torch sets for activations that its
    fast path lacks; the layer itself computes the same. It is kept by ``torch.save``, ``deepcopy`` and export. Setting
    a ternary layer as ``linear1`` or ``linear2`` does it too; this is for layers that came another way.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if any(isinstance(getattr(module, slot, None), _TERNARY) for slot in _SLOTS):
                _calls_its_layers(module)
        elif isinstance(module, nn.TransformerEncoder) and any(isinstance(m, _TERNARY) for m in module.modules()):
            module.use_nested_tensor = False  # padded batches as nested tensors are for the fast path alone


def _on_registration(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    """Called by torch for each module that takes a place in another one."""
    if isinstance(parent, nn.parallel.DistributedDataParallel) and module is not None:
        for part in module.modules():  # whose scales are about to be sent to the other processes
            if isinstance(part, TernaryLayer):
                part.refresh_scale()
    if isinstance(module, _TERNARY):
        keep_apart(parent, name, module)
        if isinstance(parent, nn.TransformerEncoderLayer) and name in _SLOTS:
            _calls_its_layers(parent)
        elif isinstance(parent, nn.MultiheadAttention) and name == "out_proj":
            warnings.warn(
                "MultiheadAttention reads the weight of out_proj without calling it, so a ternary one runs dense; "
                "leave it an nn.Linear",
                stacklevel=3,  # the assignment
            )
    elif type(module) in _DENSE and isinstance(parent._modules.get(name), _TERNARY):
        before = parent._modules[name]
        warnings.warn(
            f"{name} of {type(parent).__name__} was a {type(before).__name__} and becomes an ordinary "
            f"{type(module).__name__}; convert it again with bittorch.quantize_ if it is to stay ternary",
            stacklevel=3,
        )


register_module_module_registration_hook(_on_registration)
