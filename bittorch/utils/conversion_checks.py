"""What `quantize_` is given, before anything is looked for or changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from bittorch.quant import TernaryQuantConfig


def _check_patterns(names: Any, what: str) -> None:
    if isinstance(names, str):
        return
    if not isinstance(names, Iterable) or isinstance(names, type):
        raise TypeError(f"{what} must be a name pattern or several, such as '*.mlp.*', got {names!r}")
    for name in names if isinstance(names, Collection) else ():  # an iterator can be read only once
        if not isinstance(name, str):
            raise TypeError(f"{what} must hold name patterns, which are strings, got {name!r}")


def _check_config(config: Any) -> None:
    if isinstance(config, Mapping):
        _check_patterns(list(config), "config")
        configs = [value for value in config.values() if value is not None]
    else:
        configs = [] if config is None else [config]
    for value in configs:
        if not isinstance(value, TernaryQuantConfig):
            raise TypeError(
                f"config must be a TernaryQuantConfig, or a mapping of name patterns to them, got {value!r}; "
                f"a method alone is TernaryQuantConfig(method=...)"
            )


def check_not_wrapped(model: nn.Module) -> None:
    """Raises where converted layers would stand outside the wrapper that gathers weights or sums gradients."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError("the model is wrapped in DistributedDataParallel; convert the model first, then wrap it")
    if any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__):
        raise TypeError("the model is sharded by fully_shard; convert the model first, then shard it")


def check_arguments(model: Any, config: Any, filter_fn: Any, skip: Any) -> None:
    """Raises TypeError for arguments of a kind that could only fail later, or silently do nothing."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_not_wrapped(model)
    _check_config(config)
    _check_patterns(skip, "skip")
    if isinstance(filter_fn, type):
        raise TypeError(
            f"filter_fn must be a function (module, name) -> bool or name patterns, got class {filter_fn.__name__}; "
            f"lambda module, name: isinstance(module, {filter_fn.__name__}) takes its layers"
        )
    if filter_fn is not None and not callable(filter_fn):
        _check_patterns(filter_fn, "filter_fn")
