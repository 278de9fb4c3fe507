"""Ordinary models to ternary ones: which layers, with which configuration."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from bittorch.nn import (
    PackedLayer,
    TernaryLinear,
    call_ternary_layers,
)
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.quant import TernaryQuantConfig
from bittorch.utils.adapters import adapter_of, adapter_parts
from bittorch.utils.calibration import Calibration, Planes, calibrated_planes, check_layer
from bittorch.utils.conversion_checks import check_arguments, check_layers, check_not_compiled, converting
from bittorch.utils.conversion_report import ConversionReport, make_report, note_left
from bittorch.utils.copies import check_copy, copied
from bittorch.utils.export import check_called, export_linear_to_inference
from bittorch.utils.patterns import as_patterns, first_match, matches_any, warn_of_unmatched
from bittorch.utils.summary import count_ternary_params as count_ternary_params
from bittorch.utils.summary import get_model_memory_bytes as get_model_memory_bytes
from bittorch.utils.transformers_config import note_for_transformers
from bittorch.utils.trit_depth import Depth, DepthRequest, PlaneMaker, choose_depths
from bittorch.utils.twins import TWINS, candidates
from bittorch.utils.wrappers import named_layers, normal_tensors, unwrapped

Filter = Callable[[nn.Module, str], bool] | str | Iterable[str]
Config = TernaryQuantConfig | Mapping[str, TernaryQuantConfig | None]


def _config_of(name: str, config: Config) -> TernaryQuantConfig | None:
    if isinstance(config, TernaryQuantConfig):
        return config
    return first_match(name, config)


@dataclasses.dataclass
class _Choice:
    """Which candidates of a model are converted, and why the others are not."""

    configs: dict[str, TernaryQuantConfig] = dataclasses.field(default_factory=dict)
    left_by_caller: dict[str, str] = dataclasses.field(default_factory=dict)


def left_by_patterns(name: str, taken: list[str] | None, skipped: list[str]) -> str | None:
    """Which argument leaves a module of that name; ``taken`` is None where no patterns were given."""
    if taken is not None and not matches_any(name, taken):
        return "filter_fn leaves it"
    return "skip names it" if matches_any(name, skipped) else None


def _chosen(
    model: nn.Module,
    found: dict[str, nn.Module],
    config: Config,
    filter_fn: Filter | None,
    skip: str | Iterable[str],
    request: DepthRequest,
) -> _Choice:
    """The configuration of each layer to convert, by name; ``found`` are the candidates of the model."""
    names, skipped, choice = list(found), as_patterns(skip), _Choice()
    wanted = None if filter_fn is None or callable(filter_fn) else as_patterns(filter_fn)
    _warn_of_patterns(names, config, wanted, skipped, request)
    parts = adapter_parts(model)
    for name, module in named_layers(model):
        adapter = adapter_of(name, parts)
        left = left_by_patterns(name, wanted, skipped)
        if left is None and name in found and callable(filter_fn) and not filter_fn(module, name):
            left = "filter_fn leaves it"
        if left is None and name in found:
            value = _config_of(name, config)
            left = "config has none for it" if value is None else None if request.takes(name) else "depth leaves it"
        if left is not None:
            choice.left_by_caller[name] = left
        elif adapter is not None and not any(adapter in pattern for pattern in wanted or ()):
            choice.left_by_caller[name] = "an adapter of PEFT; name it in filter_fn to convert it"
        elif name in found:
            assert value is not None
            choice.configs[name] = value
    _warn_of_an_empty_choice(names, choice, wanted)
    return choice


def _warn_of_patterns(
    names: list[str], config: Config, wanted: list[str] | None, skipped: list[str], request: DepthRequest
) -> None:
    mapped = list(config) if isinstance(config, Mapping) else []
    given = {"skip": skipped, "depth": request.patterns, "config": mapped, "filter_fn": wanted or []}
    for what, patterns in given.items():
        warn_of_unmatched(patterns, names, what, "that can become ternary", stacklevel=6)


def _warn_of_an_empty_choice(names: list[str], choice: _Choice, wanted: list[str] | None) -> None:
    """Patterns without a layer have their own warnings."""
    if not names or choice.configs:
        return
    some = f"such as {', '.join(name or 'the model' for name in names[:3])}"
    left = [choice.left_by_caller.get(name) for name in names]
    if all(reason == "filter_fn leaves it" for reason in left):
        if not wanted:
            warnings.warn(f"filter_fn takes none of the layers, {some}", stacklevel=5)
    else:
        warnings.warn(f"nothing is converted: skip, config or depth leave all of the layers, {some}", stacklevel=5)


def _warn_of_the_model(model: nn.Module, any_candidate: bool) -> None:
    """Warns where a layer has no size yet, or nothing is or could become ternary."""
    modules = dict(named_layers(model))
    lazy = [n for n, m in modules.items() if isinstance(m, LazyModuleMixin) and isinstance(m, tuple(TWINS))]
    if lazy:
        warnings.warn(
            f"layers without a size yet stay as they are: {', '.join(lazy[:3])}; call the model once, then convert it",
            stacklevel=4,
        )
    ternary = TernaryLayer | PackedLayer
    if not any_candidate and not any(isinstance(module, ternary) for module in modules.values()):
        warnings.warn(
            "the model has no layer that can become ternary (nn.Linear, nn.Conv1d, nn.Conv2d, ...)", stacklevel=4
        )


def _only_linear(modules: Mapping[str, nn.Module], configs: dict[str, TernaryQuantConfig]) -> dict[str, nn.Linear]:
    """The chosen layers that can have planes; warns of the others."""
    if others := [name for name in configs if not isinstance(modules[name], nn.Linear)]:
        warnings.warn(
            "trit depth is for nn.Linear; convolutions and embeddings stay as they are: " + ", ".join(others[:3]),
            stacklevel=4,
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
    planes: dict[str, Planes] = {}
    if isinstance(request.calibrate, Calibration):
        for name in depths:
            with converting(name):
                check_layer(layers[name], configs[name])
        with normal_tensors():
            chosen = {name: layers[name] for name in depths}
            planes = calibrated_planes(model, chosen, configs, depths, request.calibrate)
    make = PlaneMaker()
    return {name: partial(make, layers[name], depth, configs[name], planes.get(name)) for name, depth in depths.items()}


@dataclasses.dataclass
class _Plan:
    """What each chosen layer becomes, by the identity of the layer; nothing is changed yet."""

    twins: dict[int, nn.Module]
    report: ConversionReport
    left_by_caller: dict[str, str]


def _plan(
    model: nn.Module,
    config: Config | None,
    filter_fn: Filter | None,
    skip: str | Iterable[str],
    request: DepthRequest,
) -> _Plan:
    if filter_fn is not None and not isinstance(filter_fn, str) and not callable(filter_fn):
        filter_fn = list(filter_fn)  # read more than once
    named = [] if filter_fn is None or callable(filter_fn) else as_patterns(filter_fn)
    found = candidates(model, [*named, *(config if isinstance(config, Mapping) else ())])
    _warn_of_the_model(model, bool(found))
    if config is None:
        config = TernaryQuantConfig() if request.wanted else TernaryQuantConfig(method="twn")
    choice = _chosen(model, found, config, filter_fn, skip, request)
    if request.wanted:
        linear = _only_linear(found, choice.configs)
        check_layers(linear, trains=False)
        makers = _plane_makers(model, linear, choice.configs, request)
    else:
        check_layers({name: found[name] for name in choice.configs}, trains=True)
        makers = {n: partial(TWINS[type(found[n])], found[n], value) for n, value in choice.configs.items()}
    layers = {name: found[name] for name in makers}
    check_not_compiled(model, layers)
    twins: dict[int, nn.Module] = {}
    with normal_tensors():
        for name, make in makers.items():
            with converting(name):
                twins[id(found[name])] = make()
    for name, layer in layers.items():
        if isinstance(twin := twins[id(layer)], PackedLayer):
            twin.name = name
    reasons = {name: "trit depth is for linear layers" for name in choice.configs if name not in layers}
    report = make_report(model, layers, choice.left_by_caller, reasons)
    if report.complaint:
        warnings.warn(report.complaint, stacklevel=3)
    return _Plan(twins, report, choice.left_by_caller)


def swap(model: nn.Module, twins: dict[int, nn.Module]) -> None:
    """Puts modules in the places of others, by the identity of those."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves out second places
            if id(child) in twins:
                setattr(parent, name, twins[id(child)])


def _finish(model: nn.Module, plan: _Plan) -> None:
    """Tells a model whose layers were exchanged what was done to it."""
    call_ternary_layers(model)
    note_left(model, plan.left_by_caller)
    note_for_transformers(unwrapped(model))


def quantize_(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: Filter | None = None,
    *,
    skip: str | Iterable[str] = (),
    depth: Depth | None = None,
    bits_per_weight: float | None = None,
    inputs: Iterable[Any] | None = None,
    calibrate: Calibration | Iterable[Any] | None = None,
) -> ConversionReport:
    """Makes layers of a model ternary in place: `torch.nn.Linear` becomes `bittorch.TernaryLinear`, and so do
    `torch.nn.Conv1d`, `torch.nn.Conv2d`, `torch.nn.ConvTranspose2d` and, where it is named, `torch.nn.Embedding`; with
    a depth, `torch.nn.Linear` becomes `bittorch.TernaryLinearInference` at once.

    To train: parameters stay the same objects, so tied weights stay tied and an optimiser keeps working. A learned
    method adds a parameter, ``weight_scale``, to each layer: convert before the optimiser is made.

    Without training, with ``depth`` or ``bits_per_weight``: a weight becomes ``scale * sum_i 3^i t_i``. Each digit
    plane t_i is ternary and packed (`bittorch.quant.trit_planes`). Depth 4 with a scale per row stays near the dense
    model, depth 1 does not: docs/notes/trit_depth.md has figures. Convolutions are left as they are, with a warning.

    A layer that appears in several places stays one layer, and has the first of its names. First, last and head layers
    are converted unless ``skip`` names them. Layers that are ternary already stay as they are. Adapters of PEFT
    (``lora_A``, ``lora_B``) stay dense, unless a pattern of ``filter_fn`` names them.

    A `torch.nn.Embedding` stays as it is unless a pattern of ``filter_fn`` or ``config`` matches it and ends in the
    last part of its name: ``filter_fn=("*", "*.embed_tokens")``. A table multiplies nothing, and is dense by custom.

    Other layers stay as they are, and the report counts them: subclasses of these kinds (parametrised layers such as
    weight norm, the ``out_proj`` of `torch.nn.MultiheadAttention`), recurrent layers, `torch.nn.Conv3d`, fused 3-D
    weights of experts, the ``Conv1D`` of GPT-2 in transformers. In a `torch.nn.TransformerEncoderLayer` the fast
    path of eval is switched off (`bittorch.nn.call_ternary_layers`), because it would read the weights of the layers.

    A name pattern is that of `fnmatch`, compared with the whole name of a layer, such as ``layers.0.mlp.up``: ``*``
    also stands for dots. ``*.`` at its begin also stands for nothing, so ``"*.mlp.*"`` takes ``mlp.up`` too. Names are
    those of the model inside `torch.compile`.

    Args:
        model: any model; its weights are what training goes on from.
        config: one for all layers, or a mapping of name patterns to configurations. The first pattern that matches
            counts; None there, or no match, leaves the layer. Default: ``TernaryQuantConfig(method="twn")``, which
            loses hardly more of trained weights than ``optimal`` and needs no sorting. With a depth, only granularity,
            group_size and activation_bits may be set.
        filter_fn: which layers: ``filter_fn(module, name) -> bool``, or name patterns such as ``"*.mlp.*"``.
        skip: name patterns of layers to leave, such as ``"lm_head"``.
        depth: planes, 1 to 6, for all layers, or a mapping of name patterns to depths as that of ``config``.
        bits_per_weight: instead of ``depth``: bits per weight that the converted layers together may store, codes and
            scales. Each layer gets a depth of its own, more where a bit lowers the error more. Tied weights share
            theirs and count once.
        inputs: with ``bits_per_weight``: batches that the model is called with (a mapping by keywords, a tuple or list
            by position), so that errors count as the activations see them.
        calibrate: with a depth or a budget: batches as ``inputs``, or a `bittorch.Calibration` of them, by whose
            activations the planes are chosen: integers that make up for each other's errors, and the scales with them.
            Without it weights are rounded to nearest.

    Returns:
        `ConversionReport`: the layers that became ternary, the share of the parameters, and what was left and why.

    Raises:
        ValueError: groups that do not divide a layer's in_features, a layer with hooks, a forward, or parameters,
            buffers and modules of its own, or alone in `torch.compile`; the model itself is the layer; a depth out of
            range, a budget that depth 1 exceeds, depth and bits_per_weight together. The model is then as it was.
        TypeError: a weight that is not floating, to train in float64, or quantised already (tensor subclasses of
            torchao); a model in DistributedDataParallel, DataParallel, FullyShardedDataParallel or ``fully_shard``; a
            depth that is not an integer, and other arguments of other kinds.

    Warns:
        UserWarning: a pattern or filter that matches nothing, with names that come near; arguments that leave all
            layers; a model without such layers, or with lazy ones that have no size yet; less than half of the weights
            that multiply activations became ternary, not counting what the arguments leave.

    >>> print(bittorch.quantize_(model, skip="lm_head"))

    Source: the signature is torchao's ``quantize_``.
    """
    check_arguments(model, config, filter_fn, skip)
    plan = _plan(model, config, filter_fn, skip, DepthRequest(depth, bits_per_weight, inputs, calibrate))
    if id(unwrapped(model)) in plan.twins:
        raise ValueError("the model itself is the layer and cannot change in place; use quantize_model")
    swap(model, plan.twins)
    _finish(model, plan)
    return plan.report


def quantize_model(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: Filter | None = None,
    *,
    skip: str | Iterable[str] = (),
    depth: Depth | None = None,
    bits_per_weight: float | None = None,
    inputs: Iterable[Any] | None = None,
    calibrate: Calibration | Iterable[Any] | None = None,
) -> nn.Module:
    """A copy of the model with its layers made ternary; see `quantize_` for the arguments. The model is not touched.

    Returns:
        The copy, without wrappers such as `torch.compile`; `bittorch.utils.conversion_report` says what became ternary.
    """
    check_arguments(model, config, filter_fn, skip)
    request, model = DepthRequest(depth, bits_per_weight, inputs, calibrate), unwrapped(model)
    check_copy(model, "convert a copy of")
    if request.wanted:  # these twins share nothing with the model, so no dense weight is copied to be dropped
        plan = _plan(model, config, filter_fn, skip, request)
        with normal_tensors():
            duplicate = copied(model, plan.twins)
        _finish(duplicate, plan)
        return duplicate
    with normal_tensors():
        duplicate = copied(model, {})
    plan = _plan(duplicate, config, filter_fn, skip, request)
    if id(duplicate) in plan.twins:
        return plan.twins[id(duplicate)]
    swap(duplicate, plan.twins)
    _finish(duplicate, plan)
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
    model = unwrapped(module)
    if not inplace:
        check_copy(model, "convert a copy of")
        model = copied(model, {})
    skipped = list(skip_names or ())
    taken = {
        name: layer
        for name, layer in named_layers(model)
        if type(layer) in (nn.Linear, TernaryLinear) and not any(part in name for part in skipped)
    }
    config = TernaryQuantConfig(threshold_factor)
    check_layers({name: layer for name, layer in taken.items() if type(layer) is nn.Linear}, trains=True)
    twins: dict[int, nn.Module] = {}
    for name, layer in taken.items():
        assert isinstance(layer, nn.Linear)
        ternary = layer if isinstance(layer, TernaryLinear) else TernaryLinear.from_linear(layer, config)
        twins[id(layer)] = export_linear_to_inference(ternary, name or "the model")
    check_called(model, twins)
    check_not_compiled(model, taken)
    swap(model, twins)
    return twins.get(id(model), module if inplace else model)
