"""Which layers of a model are adapters of PEFT: small, trained in full precision beside a layer that may be ternary."""

from __future__ import annotations

from torch import nn

from bittorch.utils.wrappers import named_layers

_PREFIXES = ("lora_", "loha_", "lokr_", "hada_", "vera_", "oft_", "boft_", "adalora_")
_WHOLE_COPIES = ("modules_to_save", "original_module")  # of layers, which are no adapters


def adapter_parts(model: nn.Module) -> dict[str, str]:
    """The modules that hold adapters: their names, and what the layer around them calls them, such as ``lora_A``.

    A tuner layer of PEFT names them in ``adapter_layer_names``; elsewhere the begin of the name counts.
    """
    found: dict[str, str] = {}
    for name, module in named_layers(model):
        named = getattr(type(module), "adapter_layer_names", ())
        slots = [slot for slot in named if isinstance(slot, str) and slot not in _WHOLE_COPIES]
        slots += [slot for slot in module._modules if slot.startswith(_PREFIXES)]
        for slot in slots:
            found[f"{name}.{slot}" if name else slot] = slot
    return found


def adapter_of(name: str, parts: dict[str, str]) -> str | None:
    """What the adapter is called that the layer is, or is in; None where it is in none."""
    return next((slot for part, slot in parts.items() if name == part or name.startswith(part + ".")), None)
