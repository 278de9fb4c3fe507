"""A model as a chain of blocks, each called with what the one before it returned: decoder layers, and their inputs.

With the inputs of a block at hand it can be called alone, which bounds the memory and the time of tools that go through
a model layer by layer. A model that is no such chain is called whole each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_SAME = 1e-2  # of a repeated call's output, relative: kernels may sum in another order, a state changes more


class Stop(BaseException):
    """Ends a call whose rest nobody needs; no `Exception`, so that a model's own handlers let it pass."""


def called(model: nn.Module, batch: Any) -> None:
    """Calls ``model`` with a batch: a mapping by keywords, a list or tuple by position. `Stop` ends it."""
    with contextlib.suppress(Stop):
        if isinstance(batch, Mapping):
            model(**({**batch, "use_cache": False} if batch.get("use_cache") else batch))  # see `evaluating`
        elif isinstance(batch, list | tuple):
            model(*batch)
        else:
            model(batch)


def check_batches(name: str, batches: object) -> None:
    """Raises TypeError for what is one batch, of which a loop would take parts, or nothing to go through."""
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(f"{name} must be batches, such as [batch] for one, got {type(batches).__name__}")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside it the model is in eval mode, keeps no keys and values, and makes no gradients."""
    modes = {module: module.training for module in model.modules()}
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    # Of transformers, in a part as well: a cache would grow with every repeated call.
    caching = [config for config in configs if getattr(config, "use_cache", None) is True]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for config in caching:
            config.use_cache = True


@contextlib.contextmanager
def inputs_of(layers: Mapping[str, nn.Module], take: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Inside it ``take`` gets the name and the input of each of the layers that is called, before it runs."""

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        take(name, args[0] if args else named["input"])

    handles = [layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclasses.dataclass
class _Call:
    """A call of a block; ``place`` is where in the arguments the output of the block before stood."""

    args: tuple[Any, ...]
    named: dict[str, Any]
    place: int | str | None = None
    rest: tuple[Any, ...] | None = None  # what an output that is a tuple has after its first

    def places(self) -> list[tuple[int | str, Any]]:
        return [*enumerate(self.args), *self.named.items()]

    def at(self, place: int | str | None) -> Any:
        return next((value for own, value in self.places() if own == place), None)

    def find(self, x: Tensor | None) -> None:
        self.place = None if x is None else next((place for place, value in self.places() if value is x), None)

    def put(self, x: Any) -> None:
        """Another tensor in the place."""
        if isinstance(self.place, int):
            self.args = (*self.args[: self.place], x, *self.args[self.place + 1 :])
        elif self.place is not None:
            self.named = {**self.named, self.place: x}

    def output(self, x: Tensor) -> Any:
        return x if self.rest is None else (x, *self.rest)


def _stream(output: Any) -> Tensor | None:
    """What the next block gets of an output: the tensor, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _given(output: Any, *_: Any, **__: Any) -> Any:
    return output


class _Tracer:
    """Hooks that note one call of a model."""

    def __init__(self, chain: Chain, whole: bool) -> None:
        self.chain, self.whole = chain, whole
        self.calls: list[tuple[int, _Call]] = []
        self.counts: Counter[str] = Counter()
        self.inputs: dict[str, Tensor] = {}  # of the layers of one block
        self.stream: Tensor | None = None
        self.first: Tensor | None = None

    def __call__(self, batch: Any) -> _Tracer:
        handles = []
        for i, block in enumerate(self.chain.blocks):
            handles.append(block.register_forward_pre_hook(partial(self._enter, i), with_kwargs=True))
            handles.append(block.register_forward_hook(partial(self._leave, i)))
        try:
            with inputs_of(self.chain.layers, self._layer):  # after `_enter` of a block that is a layer itself
                called(self.chain.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        self.inputs, self.stream = {}, None
        return self

    def _enter(self, index: int, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        call = _Call(args, named)
        call.find(self.stream)
        if self.calls:
            call.put(None)  # kept for the first alone
        else:  # a block may write to it
            call = _Call(tuple(map(_own, args)), {name: _own(value) for name, value in named.items()})
        self.inputs = {}
        self.calls.append((index, call))

    def _leave(self, index: int, _: nn.Module, __: Any, output: Any) -> None:
        self.stream = _stream(output)
        if index == 0 and self.stream is not None:
            self.first = self.stream.clone()
        self.calls[-1][1].rest = output[1:] if isinstance(output, tuple) else None
        if index + 1 == len(self.chain.blocks) and not self.whole:
            raise Stop

    def _layer(self, name: str, x: Tensor) -> None:
        chain = self.chain
        self.counts[name] += 1
        if name not in chain.leader:
            chain.leader[name] = next((other for other, seen in self.inputs.items() if seen is x), name)
            if not self.calls:
                chain.before.append(name)
        self.inputs[name] = x


class Chain:
    """The blocks of a model, and what each is called with for each batch.

    Args:
        model: in eval mode; `evaluating` makes it so.
        layers: those that the caller will look at; the chain is the list of modules that has most of their weights.
        batches: what the model is called with; not empty.

    Attributes:
        blocks: in the order of calls; none where no list of modules is called one by one.
        leader: of each layer that was called, in the order of first calls: the first one that got the very same input.
        before: the layers that were called before the first block; all where there is none.
        counts: for each batch how often each layer was called.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any]) -> None:
        self.model, self.layers, self.batches = model, layers, batches
        self.blocks: list[nn.Module] = []
        self._place: int | str | None = None
        for blocks in self._candidates():
            self.blocks = blocks
            if self._is_chain():
                break
            self.blocks = []
        self.trace()

    def trace(self) -> None:
        """Calls the model with each batch, and keeps the arguments of the blocks."""
        self.leader: dict[str, str] = {}
        self.before: list[str] = []
        self.counts: list[Counter[str]] = []
        self._calls: list[list[_Call]] = []
        for batch in self.batches:
            whole = not self.blocks or not self.counts or bool(self.after())
            tracer = _Tracer(self, whole)(batch)
            self.counts.append(tracer.counts)
            calls = [call for _, call in tracer.calls]
            if self.blocks:
                if self._place_in(tracer) != self._place or not isinstance(calls[0].at(self._place), Tensor):
                    raise ValueError(
                        f"batch {len(self._calls)} does not take the way of batch 0 through the {len(self.blocks)} "
                        "blocks of the model; give batches that are treated alike"
                    )
                calls[0].place = self._place
            self._calls.append(calls)

    def first_inputs(self) -> list[Any]:
        """What the first block gets, for each batch; they are given away."""
        found = [calls[0].at(calls[0].place) for calls in self._calls]
        for calls in self._calls:
            calls[0].put(None)
        return found

    def inside(self, index: int) -> dict[str, str]:
        """Layers of a block that were called, in their order, and their names inside it."""
        names = {id(part): name for name, part in self.blocks[index].named_modules()}
        return {name: names[id(self.layers[name])] for name in self.leader if id(self.layers[name]) in names}

    def after(self) -> list[str]:
        """Layers that were called after the last block, in their order."""
        held = {id(part) for block in self.blocks for part in block.modules()}
        return [name for name in self.leader if id(self.layers[name]) not in held and name not in self.before]

    def run(self, index: int, batch: int, x: Tensor) -> Tensor | None:
        """A block called alone, for one of the batches; None where `Stop` ended it."""
        call = dataclasses.replace(self._calls[batch][index])
        call.put(x.clone())  # a block may write to it
        with contextlib.suppress(Stop):
            return _stream(self.blocks[index](*call.args, **call.named))
        return None

    def run_whole(self, batch: int) -> None:
        """The model called with a batch."""
        called(self.model, self.batches[batch])

    def run_rest(self, batch: int, x: Tensor) -> None:
        """The model called with a batch, and ``x`` in the place of what its blocks would give."""
        before = {block: vars(block).get("forward") for block in self.blocks}
        try:
            for block, call in zip(self.blocks, self._calls[batch], strict=True):
                block.forward = partial(_given, call.output(x))
            called(self.model, self.batches[batch])
        finally:
            for block, forward in before.items():
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def _candidates(self) -> Iterator[list[nn.Module]]:
        """Lists of modules, that with the most weights of the layers first."""
        inside = {id(layer): sum(p.numel() for p in layer.parameters()) for layer in self.layers.values()}
        found = []
        for module in self.model.modules():
            parts = list(module.children()) if isinstance(module, nn.ModuleList | nn.Sequential) else []
            size = sum(inside.get(id(part), 0) for part in module.modules())
            if len(parts) > 1 and size and len(parts) == len(module._modules):  # each once
                found.append((size, parts))
        yield from (parts for _, parts in sorted(found, key=lambda pair: -pair[0]))

    def _place_in(self, tracer: _Tracer) -> int | str | None:
        """Where blocks that were called one by one got what the one before gave; None where they were not."""
        places = {call.place for _, call in tracer.calls[1:]}
        in_turn = [index for index, _ in tracer.calls] == list(range(len(self.blocks)))
        return places.pop() if in_turn and len(places) == 1 else None

    def _is_chain(self) -> bool:
        """Whether the first batch goes through the blocks one by one, and a repeated call of the first is the same."""
        self.leader, self.before = {}, []
        tracer = _Tracer(self, whole=True)(self.batches[0])
        self._place = self._place_in(tracer)
        if self._place is None or tracer.first is None:
            return False
        first = tracer.calls[0][1]
        if not isinstance(first.at(self._place), Tensor):
            return False
        again = _stream(self.blocks[0](*first.args, **first.named))
        if again is None or again.shape != tracer.first.shape:
            return False
        return float((again - tracer.first).float().norm()) <= _SAME * float(tracer.first.float().norm())
