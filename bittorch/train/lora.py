"""Low-rank adapters of ternary layers: several on one model, switched, saved, and merged where that is exact.

>>> bittorch.train.add_adapters(packed, form="grid", r=8)     # nothing else is trained
>>> ...                                                       # any loop
>>> bittorch.train.save_adapter(packed, "task.safetensors")   # a file of the low-rank matrices and scales
>>> bittorch.train.merge_adapters(packed)                     # the same outputs, bit for bit, without the adapter

`bittorch.train.lora_forms` has the formulas. Source: Hu et al. 2021 (LoRA).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bittorch.nn import TernaryLinear, TernaryLinearInference
from bittorch.train import lora_forms as forms
from bittorch.train.lora_forms import FORMS, Form
from bittorch.utils.convert import Filter, left_by_patterns, swap
from bittorch.utils.patterns import as_patterns, warn_of_unmatched
from bittorch.utils.wrappers import named_layers, unwrapped


class LoraLinear(nn.Module):
    """A ternary layer, ``base_layer``, and its adapters: parameters by name in ``lora_A``, ``lora_B``, ``lora_scale``.

    The adapter of the name ``active`` counts; None is the base alone. ``k`` holds the factor of each adapter.
    """

    adapter_layer_names: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_scale")

    def __init__(self, base_layer: TernaryLinear | TernaryLinearInference, form: Form) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.form = form
        self.lora_A, self.lora_B, self.lora_scale = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.k: dict[str, float] = {}
        self.active: str | None = None
        self.train(base_layer.training)

    @property
    def refuses_export(self) -> str:
        """Why its base cannot be packed below it; empty where it can."""
        if self.form != "inside":
            return ""
        return "it has an adapter inside its quantiser; call bittorch.train.merge_adapters(model) first"

    def add(self, name: str, r: int, k: float) -> None:
        """An adapter that changes nothing yet: A drawn, B zero."""
        columns, rows, device = self.in_features, self.out_features, self.weight.device
        a = torch.randn(r, columns, device=device, dtype=torch.float32) / max(columns, 1) ** 0.5
        self.put(name, a, torch.zeros(rows, r, device=device, dtype=torch.float32), k)

    def put(self, name: str, a: Tensor, b: Tensor, k: float, scale: Tensor | None = None) -> None:
        """An adapter of these values; of form ``grid`` with this scale, or that of the base."""
        self.lora_A[name], self.lora_B[name], self.k[name] = nn.Parameter(a), nn.Parameter(b), k
        if self.form == "grid":
            assert isinstance(self.base_layer, TernaryLinearInference)
            self.lora_scale[name] = nn.Parameter((self.base_layer.scale if scale is None else scale).detach().clone())

    @property
    def parts(self) -> dict[str, nn.ParameterDict]:
        """The parameters of all adapters, by the names that files have."""
        return {key: getattr(self, key) for key in self.adapter_layer_names}

    def drop(self, name: str) -> None:
        """Removes an adapter of this layer."""
        for values in self.parts.values():
            if name in values:
                del values[name]
        self.k.pop(name, None)
        self.active = None if self.active == name else self.active

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The values of an adapter in float32, by the names that files have."""
        return {key: values[name].detach().float() for key, values in self.parts.items() if name in values}

    def delta(self, name: str) -> Tensor:
        """``k B A``."""
        return forms.low_rank(self.lora_A[name], self.lora_B[name], self.k[name])

    def merged(self, name: str, delta: Tensor) -> tuple[nn.Module, float]:
        """The base with the adapter of this `delta` in it, and the share that survives: 1 where it is exact."""
        base = self.base_layer
        if self.form == "grid":
            assert isinstance(base, TernaryLinearInference)
            return forms.merged_grid(base, delta, self.lora_scale[name]), 1.0
        if self.form == "inside":
            assert isinstance(base, TernaryLinear)
            return forms.merged_inside(base, delta), 1.0
        return forms.requantised(base, delta)

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        name, base = self.active, self.base_layer
        if name is None:
            result: Tensor = base(input, *args)
            return result
        if args:
            raise TypeError("a layer with an active adapter takes no norm beside its input")
        if self.form == "beside":
            return forms.beside(input, base(input), self.lora_A[name], self.lora_B[name], self.k[name])
        forms.check_base(base, self.form, "base_layer")
        if self.form == "grid":
            return forms.grid(input, base, self.delta(name), self.lora_scale[name])  # type: ignore[arg-type]
        return forms.inside(input, base, self.delta(name))  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The weight of the base. Models read its dtype and device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Columns of the base."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """Rows of the base."""
        return self.base_layer.out_features

    def extra_repr(self) -> str:
        sizes = ", ".join(f"{name}: r={len(a)}, k={self.k[name]:g}" for name, a in self.lora_A.items())
        return f"form={self.form}, active={self.active!r}, {sizes}"


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What a merge kept: ``layers`` has the share of the adapter that survives in each, ``share`` that of all."""

    form: Form
    layers: dict[str, float]
    share: float

    @property
    def exact(self) -> bool:
        """Whether outputs are those before the merge, bit for bit."""
        return self.form != "beside"

    def __str__(self) -> str:
        if self.exact:
            return f"{len(self.layers)} adapters of form {self.form!r} are merged bit for bit"
        least = min(self.layers, key=self.layers.__getitem__)
        return (
            f"{len(self.layers)} adapters are merged by quantising again: {self.share:.1%} of them survives, least "
            f"({self.layers[least]:.1%}) in {least}"
        )


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with adapters, by their names."""
    return {name: module for name, module in named_layers(model) if isinstance(module, LoraLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that the model has, in the order in which they came."""
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.lora_A))


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ParameterDict, name):
        raise ValueError(f"the name of an adapter must be a word without dots, got {name!r}")


def check_k(k: object, what: str) -> float:
    if isinstance(k, bool) or not isinstance(k, int | float) or not 0 < k < float("inf"):
        raise ValueError(f"{what} must be a positive number, got {k!r:.40}")
    return float(k)


def wrap(model: nn.Module, bases: dict[str, nn.Module], form: Form) -> dict[str, LoraLinear]:
    """The layers of these names with room for adapters; those that have it already stay.

    Raises:
        TypeError: a layer of a kind that the form does not take, or that is the model itself.
        ValueError: a layer of several planes with ``grid``, or with adapters of another form.
    """
    for name, layer in bases.items():
        if isinstance(layer, LoraLinear):
            if layer.form != form:
                raise ValueError(
                    f"{name} has adapters of form {layer.form!r}; merge or remove them before {form!r} ones"
                )
        else:
            forms.check_base(layer, form, name or "the model")
        if layer is unwrapped(model):
            raise TypeError("the model itself is the layer and cannot change in place; put it into an nn.Sequential")
    twins: dict[int, nn.Module] = {}
    made: dict[str, LoraLinear] = {}
    for name, layer in bases.items():
        if not isinstance(layer, LoraLinear):
            twins.setdefault(id(layer), LoraLinear(layer, form))  # type: ignore[arg-type]
            layer = twins[id(layer)]
        assert isinstance(layer, LoraLinear)
        made[name] = layer
    swap(model, twins)
    return made


def _bases(model: nn.Module, form: Form, filter_fn: Filter | None, skip: str | Iterable[str]) -> dict[str, nn.Module]:
    kinds = (*FORMS[form], LoraLinear)
    found = dict(named_layers(model))
    inner = {id(layer.base_layer) for layer in found.values() if isinstance(layer, LoraLinear)}
    found = {name: layer for name, layer in found.items() if isinstance(layer, kinds) and id(layer) not in inner}
    skipped, wanted = as_patterns(skip), None if filter_fn is None or callable(filter_fn) else as_patterns(filter_fn)
    for what, patterns in {"skip": skipped, "filter_fn": wanted or []}.items():
        warn_of_unmatched(patterns, list(found), what, "that can have the adapter", stacklevel=4)
    chosen = {name: layer for name, layer in found.items() if left_by_patterns(name, wanted, skipped) is None}
    if callable(filter_fn):
        chosen = {name: layer for name, layer in chosen.items() if filter_fn(layer, name)}
    if not chosen:
        kind = " or ".join(kind.__name__ for kind in FORMS[form])
        raise ValueError(f"no layer gets an adapter: form {form!r} takes {kind}, of which the model has {len(found)}")
    return chosen


def add_adapters(
    model: nn.Module,
    name: str = "default",
    *,
    form: Form,
    r: int = 8,
    k: float = 2.0,
    filter_fn: Filter | None = None,
    skip: str | Iterable[str] = (),
    freeze: bool = True,
) -> list[str]:
    """Gives ternary layers of a model an adapter, which is active then; outputs stay what they are.

    Args:
        model: with `bittorch.TernaryLinear` or packed layers, changed in place.
        name: of the adapter.
        form: ``beside`` for both kinds, never merged without loss; ``grid`` for packed layers and ``inside`` for
            training layers, which merge exactly.
        r: rank.
        k: factor of ``B A``, which `save_adapter` keeps and ``state_dict()`` does not. With ``grid`` it is in units of
            codes: 2 at a learning rate of 1e-2, or 16 at 3e-3.
        filter_fn, skip: which layers, as in `bittorch.quantize_`.
        freeze: whether all other parameters stop being trained.

    Returns:
        Names of the layers.

    Raises:
        ValueError: an unknown form, a rank below 1, a k that is no positive number, a name that is taken or no word, no
            layer, a layer of several planes with ``grid``, adapters of another form.
        TypeError: the model itself is the layer.
    """
    if form not in list(FORMS):
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"r must be an integer from 1 on, got {r!r}")
    factor = check_k(k, "k")
    check_name(name)
    bases = _bases(model, form, filter_fn, skip)
    if taken := [n for n, layer in bases.items() if isinstance(layer, LoraLinear) and name in layer.lora_A]:
        raise ValueError(f"{taken[0]} has an adapter {name!r} already; remove_adapter(model, {name!r}) drops it")
    layers = wrap(model, bases, form)
    if freeze:
        model.requires_grad_(False)
    for layer in layers.values():
        layer.add(name, r, factor)
    set_adapter(model, name)
    return list(layers)


def check_known(model: nn.Module, name: str) -> None:
    if name not in (names := adapter_names(model)):
        raise ValueError(f"the model has no adapter {name!r}; it has {', '.join(names) or 'none'}")


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Makes one adapter count, or none. Layers without it run their base. ValueError where no layer has it.

    Its parameters require gradients then, those of other adapters do not; what else is trained stays as it is.
    """
    if name is not None:
        check_known(model, name)
    for layer in lora_layers(model).values():
        layer.active = name if name is not None and name in layer.lora_A else None
        for values in layer.parts.values():
            for own, parameter in values.items():
                parameter.requires_grad_(own == name)


def remove_adapter(model: nn.Module, name: str) -> None:
    """Drops an adapter; layers without another become what they were. ValueError where no layer has it.

    Another one that is active stays so.
    """
    check_known(model, name)
    layers = list(lora_layers(model).values())
    for layer in layers:
        layer.drop(name)
    swap(model, {id(layer): layer.base_layer for layer in layers if not layer.lora_A})


def _to_merge(model: nn.Module, name: str | None) -> tuple[str, dict[str, LoraLinear]]:
    """The adapter to merge and the layers that have it; ValueError where that is open, or others are in the way."""
    layers = lora_layers(model)
    names = adapter_names(model)
    if not names:
        raise ValueError("the model has no adapter to merge; one that was merged is part of the layers")
    active = {layer.active for layer in layers.values() if layer.active is not None}
    if name is None and len(active) != 1:
        raise ValueError(f"name the adapter to merge: active are {sorted(active) or 'none'}, the model has {names}")
    chosen = next(iter(active)) if name is None else name
    check_known(model, chosen)
    found = {layer_name: layer for layer_name, layer in layers.items() if chosen in layer.lora_A}
    for layer_name, layer in found.items():
        if others := [n for n in layer.lora_A if n != chosen]:
            raise ValueError(
                f"{layer_name} has other adapters, {', '.join(others)}, which were trained on the base as it is; "
                "remove_adapter drops them, or merge into a copy of the model"
            )
    return chosen, found


def merge_adapters(model: nn.Module, name: str | None = None, *, requantise: bool = False) -> MergeReport:
    """Makes an adapter part of its layers, in place: ordinary ternary layers are left.

    Args:
        model: with adapters.
        name: None is the active one.
        requantise: allow a merge of form ``beside``: ``W + k B A`` is quantised again, and most of a small adapter is
            lost with that.

    Returns:
        `MergeReport`, with the share that survives.

    Raises:
        ValueError: no such adapter, one that was merged already, other adapters on the same layers, form ``beside``
            without ``requantise``. The model is as it was then.
    """
    chosen, found = _to_merge(model, name)
    form = next(iter(found.values())).form
    if form == "beside" and not requantise:
        raise ValueError(
            "an adapter beside a ternary layer has no exact merged form: codes of three values hold little of a small "
            "change. Keep it beside, or train form 'grid' or 'inside'; requantise=True quantises again, and "
            "reports how much survives"
        )
    twins: dict[int, nn.Module] = {}
    shares: dict[str, float] = {}
    kept = total = 0.0
    for layer_name, layer in found.items():
        delta = layer.delta(chosen).detach()
        twins[id(layer)], share = layer.merged(chosen, delta)
        shares[layer_name] = share
        norm = float(delta.double().square().sum())
        kept, total = kept + share * norm, total + norm
    swap(model, twins)
    return MergeReport(form, shares, kept / total if total else 1.0)
