"""Ordinary models to ternary ones: which layers, with which configuration."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from bittorch.nn import PackedLayer, TernaryConv2d, TernaryLinear
from bittorch.quant import TernaryQuantConfig
from bittorch.utils.conversion_checks import check_arguments, check_layers
from bittorch.utils.export import check_called, export_linear_to_inference
from bittorch.utils.summary import count_ternary_params as count_ternary_params
from bittorch.utils.summary import get_model_memory_bytes as get_model_memory_bytes
from bittorch.utils.trit_depth import Depth, DepthRequest, PlaneMaker, choose_depths, first_match

Filter = Callable[[nn.Module, str], bool] | str | Iterable[str]
Config = TernaryQuantConfig | Mapping[str, TernaryQuantConfig | None]

# What each kind of layer becomes. Subclasses are left alone: they may compute something else.
TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: TernaryLinear.from_linear,
    nn.Conv2d: TernaryConv2d.from_conv2d,
}


def _patterns(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _warn_of_unmatched(patterns: list[str], names: list[str], what: str) -> None:
    """Warns of patterns that no layer bears, with the names that come near."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.strip("*."), names, n=3, cutoff=0.3) or names[:3]
            warnings.warn(
                f"{what} {pattern!r} matches no layer that can become ternary; there is {', '.join(near) or 'none'}",
                stacklevel=5,  # the caller of quantize_
            )


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each layer once, by its first name, as `named_modules` gives it."""
    for name, module in model.named_modules():
        if type(module) in TWINS:
            yield name, module


def _config_of(name: str, config: Config) -> TernaryQuantConfig | None:
    if isinstance(config, TernaryQuantConfig):
        return config
    return first_match(name, config)


def _chosen(
    found: dict[str, nn.Module],
    config: Config,
    filter_fn: Filter | None,
    skip: str | Iterable[str],
    request: DepthRequest,
) -> dict[str, TernaryQuantConfig]:
    """The configuration of each layer to convert, by name; ``found`` are the candidates of the model."""
    names, skipped = list(found), _patterns(skip)
    some = f"such as {', '.join(name or 'the model' for name in names[:3])}"
    _warn_of_unmatched(skipped, names, "skip")
    _warn_of_unmatched(request.patterns, names, "depth")
    if isinstance(config, Mapping):
        _warn_of_unmatched(list(config), names, "config")
    wanted: list[str] = []
    if filter_fn is None or callable(filter_fn):
        taken = [name for name in names if filter_fn is None or filter_fn(found[name], name)]
    else:
        wanted = _patterns(filter_fn)
        _warn_of_unmatched(wanted, names, "filter_fn")
        taken = [name for name in names if _matches(name, wanted)]
    configs = {name: _config_of(name, config) for name in taken if not _matches(name, skipped)}
    chosen = {name: value for name, value in configs.items() if value is not None and request.takes(name)}
    if names and not taken and not wanted:  # patterns without a layer have their own warnings
        warnings.warn(f"filter_fn takes none of the layers, {some}", stacklevel=4)
    elif taken and not chosen:
        warnings.warn(f"nothing is converted: skip, config or depth leave all of the layers, {some}", stacklevel=4)
    return chosen


def _warn_of_the_model(model: nn.Module, any_candidate: bool) -> None:
    """Warns where a layer has no size yet, or nothing is or could become ternary."""
    modules = dict(model.named_modules())
    lazy = [n for n, m in modules.items() if isinstance(m, LazyModuleMixin) and isinstance(m, tuple(TWINS))]
    if lazy:
        warnings.warn(
            f"layers without a size yet stay as they are: {', '.join(lazy[:3])}; call the model once, then convert it",
            stacklevel=4,
        )
    ternary = TernaryLinear | TernaryConv2d | PackedLayer
    if not any_candidate and not any(isinstance(module, ternary) for module in modules.values()):
        warnings.warn("the model has no layer that can become ternary (nn.Linear, nn.Conv2d)", stacklevel=4)


def _twin(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"cannot convert {name}: {error}") from None


def _only_linear(modules: Mapping[str, nn.Module], configs: dict[str, TernaryQuantConfig]) -> dict[str, nn.Linear]:
    """The chosen layers that can have planes; warns of the others."""
    if convolutions := [name for name in configs if isinstance(modules[name], nn.Conv2d)]:
        warnings.warn(
            f"trit depth is for nn.Linear; convolutions stay as they are: {', '.join(convolutions[:3])}", stacklevel=4
        )
    return {name: module for name, module in modules.items() if name in configs and isinstance(module, nn.Linear)}


def _plane_makers(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    configs: dict[str, TernaryQuantConfig],
    request: DepthRequest,
) -> dict[str, Callable[[], nn.Module]]:
    """What makes each of ``layers`` one of trit planes, by name."""
    if request.bits_per_weight is None:
        depths = {name: depth for name in layers if (depth := request.of(name)) is not None}
    else:
        depths = choose_depths(model, layers, configs, request.bits_per_weight, request.inputs)
    make = PlaneMaker()
    return {name: partial(make, layers[name], depth, configs[name]) for name, depth in depths.items()}


def _twins(
    model: nn.Module,
    config: Config | None,
    filter_fn: Filter | None,
    skip: str | Iterable[str],
    request: DepthRequest,
) -> dict[int, nn.Module]:
    """What each chosen layer becomes, by the identity of the layer; nothing is changed yet."""
    found = dict(_candidates(model))
    _warn_of_the_model(model, bool(found))
    if config is None:
        config = TernaryQuantConfig() if request.wanted else TernaryQuantConfig(method="twn")
    configs = _chosen(found, config, filter_fn, skip, request)
    if request.wanted:
        linear = _only_linear(found, configs)
        check_layers(linear, trains=False)
        makers = _plane_makers(model, linear, configs, request)
    else:
        check_layers({name: found[name] for name in configs}, trains=True)
        makers = {name: partial(TWINS[type(found[name])], found[name], value) for name, value in configs.items()}
    twins = {id(found[name]): _twin(name or "the model", make) for name, make in makers.items()}
    check_called(model, twins)
    return twins


def _swap(model: nn.Module, twins: dict[int, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves out second places
            if id(child) in twins:
                setattr(parent, name, twins[id(child)])


def quantize_(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: Filter | None = None,
    *,
    skip: str | Iterable[str] = (),
    depth: Depth | None = None,
    bits_per_weight: float | None = None,
    inputs: Iterable[Any] | None = None,
) -> None:
    """Makes layers of a model ternary in place: `torch.nn.Linear` becomes `bittorch.TernaryLinear`, `torch.nn.Conv2d`
    `bittorch.TernaryConv2d`; with a depth, `torch.nn.Linear` becomes `bittorch.TernaryLinearInference` at once.

    To train: parameters stay the same objects, so tied weights stay tied and an optimiser keeps working. A learned
    method adds a parameter, ``weight_scale``, to each layer: convert before the optimiser is made.

    Without training, with ``depth`` or ``bits_per_weight``: a weight becomes ``scale * sum_i 3^i t_i``, each digit
    plane t_i ternary and packed (`bittorch.quant.trit_planes`). Depth 4 with a scale a row stays near the dense model,
    depth 1 does not: docs/trit_depth.md has figures. Convolutions are left as they are, with a warning.

    A layer that appears in several places stays one layer, and has the first of its names. First, last and head layers
    are converted unless ``skip`` names them. Layers that are ternary already stay as they are, and so does what only
    resembles the two: subclasses, among them parametrised layers (weight norm) and the ``out_proj`` of
    `torch.nn.MultiheadAttention`, recurrent layers, the ``Conv1D`` of GPT-2 in transformers. `bittorch.utils.summary`
    lists what became ternary.

    Args:
        model: any model; its weights are what training goes on from.
        config: one for all layers, or a mapping of name patterns to configurations, of which the first that matches
            counts; None there, or no match, leaves the layer. Default: ``TernaryQuantConfig(method="twn")``, which
            loses hardly more of trained weights than ``optimal`` and sorts nothing. With a depth granularity,
            group_size and activation_bits alone may be set.
        filter_fn: which layers: ``filter_fn(module, name) -> bool``, or name patterns such as ``"*.mlp.*"``.
        skip: name patterns of layers to leave, such as ``"lm_head"``.
        depth: planes, 1 to 6, for all layers, or a mapping of name patterns to depths as that of ``config``.
        bits_per_weight: instead of ``depth``: what the converted layers together may store for a weight, codes and
            scales; each gets a depth of its own, more where more error falls for a bit. Tied weights share theirs and
            count once.
        inputs: with ``bits_per_weight``: batches that the model is called with (a mapping by keywords, a tuple or list
            by position), so that errors count as the activations see them.

    Raises:
        ValueError: groups that do not divide a layer's in_features, a layer with hooks, a forward, or parameters,
            buffers and modules of its own, one whose weight torch reads without calling it; the model itself is the
            layer; a depth out of range, a budget that depth 1 exceeds, depth and bits_per_weight together. The model is
            then as it was.
        TypeError: a weight that is not floating, or to train in float64; a model in DistributedDataParallel,
            DataParallel or `fully_shard`; a depth that is not an integer, and other arguments of other kinds.

    Warns:
        UserWarning: a pattern or filter that matches nothing, with names that come near; arguments that leave all
            layers; a model without such layers, or with lazy ones that have no size yet.

    Source: the signature is torchao's ``quantize_``.
    """
    check_arguments(model, config, filter_fn, skip)
    twins = _twins(model, config, filter_fn, skip, DepthRequest(depth, bits_per_weight, inputs))
    if id(model) in twins:
        raise ValueError("the model itself is the layer and cannot change in place; use quantize_model")
    _swap(model, twins)


def quantize_model(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: Filter | None = None,
    *,
    skip: str | Iterable[str] = (),
    depth: Depth | None = None,
    bits_per_weight: float | None = None,
    inputs: Iterable[Any] | None = None,
) -> nn.Module:
    """A copy of the model with its layers made ternary; see `quantize_` for the arguments. The model is not touched."""
    check_arguments(model, config, filter_fn, skip)
    request = DepthRequest(depth, bits_per_weight, inputs)
    if request.wanted:  # these twins share nothing with the model, so no dense weight is copied to be dropped
        return copy.deepcopy(model, dict(_twins(model, config, filter_fn, skip, request)))
    duplicate = copy.deepcopy(model)
    twins = _twins(duplicate, config, filter_fn, skip, request)
    if id(duplicate) in twins:
        return twins[id(duplicate)]
    _swap(duplicate, twins)
    return duplicate


def convert_linear_layers(
    module: nn.Module,
    threshold_factor: float = 0.05,
    skip_names: Iterable[str] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Packs linear layers without training: an older name for `quantize_model` followed by `export_for_inference`.

    One ternary plane of weights that were not trained for it loses most of a model's accuracy: `quantize_` and
    training keep it, and ``quantize_model(model, depth=4)`` nearly does without training.

    Args:
        module: any model; `torch.nn.Linear` and `bittorch.TernaryLinear` become `bittorch.TernaryLinearInference`.
        threshold_factor: of method ``max``, for `torch.nn.Linear`.
        skip_names: layers whose name contains one of these stay as they are.
        inplace: change ``module`` itself.

    Returns:
        The module, or a copy of it, with packed linear layers.

    Raises:
        As `quantize_` and `export_linear_to_inference`.
    """
    model = module if inplace else copy.deepcopy(module)
    skipped = list(skip_names or ())
    taken = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in (nn.Linear, TernaryLinear) and not any(part in name for part in skipped)
    }
    config = TernaryQuantConfig(threshold_factor)
    check_layers({name: layer for name, layer in taken.items() if type(layer) is nn.Linear}, trains=True)
    twins: dict[int, nn.Module] = {}
    for name, layer in taken.items():
        ternary = layer if isinstance(layer, TernaryLinear) else TernaryLinear.from_linear(layer, config)
        twins[id(layer)] = export_linear_to_inference(ternary, name or "the model")
    check_called(model, twins)
    _swap(model, twins)
    return twins.get(id(model), model)
