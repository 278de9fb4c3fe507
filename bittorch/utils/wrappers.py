"""Modules around a module that only call it: what torch.compile, weight averaging, FSDP1 and checkpointing add."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

# The slot of the inner module, and the name of the wrapper's class: importing these classes takes seconds.
_WRAPPERS = {
    "_orig_mod": "OptimizedModule",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "ActivationWrapper",
}


def is_called(module: nn.Module, name: str) -> bool:
    """Whether the module is of the class of this name, or derived from it; the class is not imported."""
    return any(base.__name__ == name for base in type(module).__mro__)


def inner_of(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper calls; None for a module that is no wrapper.

    An average counts as one around a whole model alone: inside another model it has a name and a state of its own.
    """
    for slot, kind in _WRAPPERS.items():
        if slot in module._modules and is_called(module, kind):
            return module._modules[slot]
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside all wrappers around it."""
    while (inner := model.module if isinstance(model, AveragedModel) else inner_of(model)) is not None:
        model = inner
    return model


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules`` of the unwrapped model, without wrappers and without their part of a name."""
    for name, module in unwrapped(model).named_modules():
        if inner_of(module) is None:
            yield ".".join(part for part in name.split(".") if part not in _WRAPPERS), module


def check_not_wrapped(
    model: nn.Module, if_wrapped: str, if_sharded: str, if_fsdp: str, whole_is_fine: bool = True
) -> None:
    """Raises TypeError, with what to do, for a model inside the wrappers that gather weights or sum gradients.

    ``whole_is_fine`` accepts FullyShardedDataParallel inside ``summon_full_params``, where each weight is whole.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise TypeError(f"the model is wrapped in {type(model).__name__}; {if_wrapped}")
    for name, module in model.named_modules():
        if is_called(module, "FSDPModule"):
            raise TypeError(f"the model is sharded by fully_shard; {if_sharded}")
        if is_called(module, "FullyShardedDataParallel") and not (whole_is_fine and _is_whole(module)):
            where = f"{name} is" if name else "the model is"
            raise TypeError(f"{where} wrapped in FullyShardedDataParallel; {if_fsdp}")


def _is_whole(module: nn.Module) -> bool:
    """Whether an FSDP1 module holds all of its parameters now, inside ``summon_full_params``."""
    return getattr(getattr(module, "training_state", None), "name", "") == "SUMMON_FULL_PARAMS"


@contextlib.contextmanager
def normal_tensors() -> Iterator[None]:
    """Inside it new tensors can be trained and saved, also where the caller is in inference mode."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
