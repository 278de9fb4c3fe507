"""What `quantize_` is given: its arguments before anything is looked for, and each layer before it is converted."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bittorch.quant import TernaryQuantConfig
from bittorch.utils.export import check_own_values, registered_beside
from bittorch.utils.wrappers import check_not_wrapped, inner_of


@contextlib.contextmanager
def converting(name: str) -> Iterator[None]:
    """Inside it a ValueError says which layer cannot be converted."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"cannot convert {name or 'the model'}: {error}") from None


def _check_strings(names: Any, what: str) -> None:
    if isinstance(names, str):
        return
    if not isinstance(names, Iterable) or isinstance(names, type):
        raise TypeError(f"{what} must be a name pattern or several, such as '*.mlp.*', got {names!r}")
    for name in names if isinstance(names, Collection) else ():  # an iterator can be read only once
        if not isinstance(name, str):
            raise TypeError(f"{what} must hold name patterns, which are strings, got {name!r}")


def _check_config(config: Any) -> None:
    if isinstance(config, Mapping):
        _check_strings(list(config), "config")
        configs = [value for value in config.values() if value is not None]
    else:
        configs = [] if config is None else [config]
    for value in configs:
        if not isinstance(value, TernaryQuantConfig):
            raise TypeError(
                f"config must be a TernaryQuantConfig, or a mapping of name patterns to them, got {value!r}; "
                f"a method alone is TernaryQuantConfig(method=...)"
            )


_HOOKS = {
    "forward": ("_forward_hooks", "_forward_pre_hooks"),
    "backward": ("_backward_hooks", "_backward_pre_hooks"),
    "state dict": (
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    ),
}


_MASTERS = (torch.float32, torch.float16, torch.bfloat16)


def _check_layer(layer: nn.Module, name: str, trains: bool) -> None:
    """Raises where a converted layer would lose what the layer has, or could not run with its weight."""
    for kind, attributes in _HOOKS.items():
        if any(getattr(layer, attribute) for attribute in attributes):
            raise ValueError(f"cannot convert {name}: it has {kind} hooks, which would be lost; remove them first")
    if "forward" in vars(layer):
        raise ValueError(f"cannot convert {name}: its forward was replaced, which would be lost; put it back first")
    if extra := registered_beside(layer, ("weight", "bias")):
        raise ValueError(
            f"cannot convert {name}: it has {extra} beside its weight and bias, which would be lost; register them on "
            "the module around it, or skip the layer"
        )
    weight = layer.weight
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"cannot convert {name}: its weight is a {type(weight).__name__} and no parameter")
    check_own_values(weight, f"cannot convert {name}")
    if not weight.is_floating_point():
        raise TypeError(f"cannot convert {name}: its weight is {weight.dtype}, and ternary masters are floating")
    if trains and weight.dtype not in _MASTERS:
        raise TypeError(
            f"cannot convert {name}: its weight is {weight.dtype}, and ternary masters are float32, float16 or "
            f"bfloat16; call model.float() first"
        )
    if weight.is_meta and not trains:
        raise ValueError(f"cannot convert {name}: its weight is on the meta device and has no values; load them first")


def check_layers(layers: Mapping[str, nn.Module], trains: bool) -> None:
    """Raises for the first layer that cannot be converted, to train or to planes."""
    for name, layer in layers.items():
        _check_layer(layer, name or "the model", trains)


def check_not_compiled(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raises where a layer stands alone in a wrapper, which would go on calling the layer that it was made for."""
    inner = {id(found): module for module in model.modules() if (found := inner_of(module)) is not None}
    for name, layer in layers.items():
        if (wrapper := inner.get(id(layer))) is not None and wrapper is not model:
            raise ValueError(
                f"cannot convert {name or 'the model'}: it stands alone in {type(wrapper).__name__}, which calls the "
                "layer that it was made for; convert the model first, then wrap or compile it"
            )


def check_arguments(model: Any, config: Any, filter_fn: Any, skip: Any) -> None:
    """Raises TypeError for arguments of a kind that could only fail later, or silently do nothing."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    first = "convert the model first, then"
    check_not_wrapped(model, f"{first} wrap it", f"{first} shard it", f"{first} wrap it", whole_is_fine=False)
    _check_config(config)
    _check_strings(skip, "skip")
    if isinstance(filter_fn, type):
        raise TypeError(
            f"filter_fn must be a function (module, name) -> bool or name patterns, got class {filter_fn.__name__}; "
            f"lambda module, name: isinstance(module, {filter_fn.__name__}) takes its layers"
        )
    if filter_fn is not None and not callable(filter_fn):
        _check_strings(filter_fn, "filter_fn")
