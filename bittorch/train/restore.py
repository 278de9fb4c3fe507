"""What a trial of training changes, put back exactly."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bittorch.nn.ternary_layer import TernaryLayer


@contextlib.contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer, batches: object = None) -> Iterator[None]:
    """Puts back, at the end and after any exception, what training inside the block changed.

    These are the parameters of the model and of the optimiser, gradients, buffers, learned scales with their states,
    modes of the modules, states and groups of the optimiser, the random numbers of torch, NumPy and Python, and the
    generators of a data loader. Every tensor stays the same object.
    """
    with contextlib.ExitStack() as stack:
        for device in {parameter.device for parameter in model.parameters()}:
            if device.type not in ("cpu", "meta"):
                stack.enter_context(torch.random.fork_rng([device.index or 0], device_type=device.type))
        for keep in (_random_numbers, _tensors, _modules, _optimizer):
            stack.callback(keep(model, optimizer))
        stack.callback(_generators(batches))
        yield


def _random_numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    numpy = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None

    def undo() -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])

    return undo


def _generators(batches: object) -> Callable[[], None]:
    """Of a DataLoader and its sampler, where they have some of their own."""
    holders = (batches, getattr(batches, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    kept = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]

    def undo() -> None:
        for generator, state in kept:
            generator.set_state(state)

    return undo


def _writable(tensor: Tensor) -> bool:
    """Nobody can write to an expanded tensor, nor to an inference tensor while training."""
    expanded = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return not (expanded or tensor.is_inference())


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    places: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (place, dict(place)) for module in model.modules() for place in (module._parameters, module._buffers)
    ]
    found = {id(tensor): tensor for _, kept in places for tensor in kept.values() if tensor is not None}
    found |= {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    values = [(tensor, tensor.detach().clone()) for tensor in found.values() if _writable(tensor)]
    gradients = [(tensor, tensor.grad) for tensor in found.values() if tensor.is_leaf]
    for tensor, _ in gradients:
        tensor.grad = None  # so that those that are there are not added to

    @torch.no_grad()
    def undo() -> None:
        for place, kept in places:
            place.clear()
            place.update(kept)
        for tensor, value in values:
            tensor.copy_(value)
        for tensor, gradient in gradients:
            tensor.grad = gradient

    return undo


def _modules(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]
    attributes = [(module, dict(module.__dict__)) for module, _ in modes if isinstance(module, TernaryLayer)]

    def undo() -> None:
        for layer, kept in attributes:  # states of learned scales, and whether the layer ran
            layer.__dict__.clear()
            layer.__dict__.update(kept)
        for module, mode in modes:
            module.training = mode

    return undo


def _optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    state, groups = optimizer.state, [(group, dict(group)) for group in optimizer.param_groups]
    # The trial runs on a copy, and the tensors that are there are never written to. The keys are parameters.
    optimizer.state = defaultdict(dict, {key: copy.deepcopy(value) for key, value in state.items()})

    def undo() -> None:
        optimizer.state = state
        for group, kept in groups:
            group.clear()
            group.update(kept)

    return undo
