"""Trit depth for whole models: the planes of each layer, and how many where only a budget of bits is given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from bittorch.nn import TernaryLinearInference
from bittorch.nn.ternary_layer import gathered
from bittorch.quant import TernaryQuantConfig
from bittorch.quant.trit_planes import MAX_DEPTH, check_depth, from_grid, grid_integers
from bittorch.utils.block_chain import called, check_batches, evaluating, inputs_of
from bittorch.utils.calibration import Calibration, Planes
from bittorch.utils.conversion_checks import converting
from bittorch.utils.patterns import first_match

Depth = int | Mapping[str, int | None]
_TOKENS = 512  # activations of a layer that its errors are weighed with
_TOKENS_A_BATCH = 64


@dataclasses.dataclass(frozen=True)
class DepthRequest:
    """What the caller of `bittorch.quantize_` said about depth; checked when it is made."""

    depth: Depth | None = None
    bits_per_weight: float | None = None
    inputs: Iterable[Any] | None = None
    calibrate: Calibration | Iterable[Any] | None = None

    def __post_init__(self) -> None:
        if self.depth is not None and self.bits_per_weight is not None:
            raise ValueError(
                f"depth={self.depth!r} and bits_per_weight={self.bits_per_weight!r} are two answers to one question; "
                "give one of them"
            )
        if self.inputs is not None and self.bits_per_weight is None:
            raise ValueError("inputs weigh the errors of automatic depth; they go with bits_per_weight alone")
        if self.calibrate is not None:
            if not self.wanted:
                raise ValueError("calibrate chooses the planes of a depth; it goes with depth or bits_per_weight")
            if not isinstance(self.calibrate, Calibration):
                object.__setattr__(self, "calibrate", Calibration(self.calibrate))
        if self.inputs is not None:
            check_batches("inputs", self.inputs)
        if isinstance(self.depth, Mapping):
            for pattern, value in self.depth.items():
                if not isinstance(pattern, str):
                    raise TypeError(f"depth must map name patterns, which are strings, got {pattern!r}")
                if value is not None:
                    check_depth(value)
        elif self.depth is not None:
            check_depth(self.depth)
        bits = self.bits_per_weight
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, Real) or not bits > 0):
            raise ValueError(f"bits_per_weight must be a positive number, got {bits!r}")

    @property
    def wanted(self) -> bool:
        return self.depth is not None or self.bits_per_weight is not None

    @property
    def patterns(self) -> list[str]:
        return list(self.depth) if isinstance(self.depth, Mapping) else []

    def takes(self, name: str) -> bool:
        """Whether a layer is to be converted, as far as depth says it."""
        return not isinstance(self.depth, Mapping) or self.of(name) is not None

    def of(self, name: str) -> int | None:
        """The depth of a layer, None to leave it; not for a budget."""
        return first_match(name, self.depth) if isinstance(self.depth, Mapping) else self.depth


def _error(weight: Tensor, depth: int, config: TernaryQuantConfig, x: Tensor | None) -> float:
    """``|W - Q|^2 / |W|^2``, or with activations the mean over tokens of ``|(W - Q) x|^2 / |W x|^2``."""
    w = weight.float()
    difference = w - from_grid(*grid_integers(w, depth, *config.grouping))
    if x is not None:  # token by token: in language models a few are a hundred times as large as all others
        lost, norms = ((x @ m.T).double().square().sum(1) for m in (difference, w))
        return float((lost / norms)[norms > 0].sum()) / len(x)
    norm = float(w.double().square().sum())
    return float(difference.double().square().sum()) / norm if norm else 0.0


def _stored_as(linear: nn.Linear, config: TernaryQuantConfig) -> Hashable:
    """Equal for layers that share their codes and scales at one depth."""
    return id(linear.weight), config


def _bits_of_a_plane(linear: nn.Linear, config: TernaryQuantConfig) -> int:
    """Stored bits of one plane: packed codes and float32 scales, as `bittorch.utils.summary` counts them."""
    n, k = linear.out_features, linear.in_features
    granularity, group_size = config.grouping
    groups = k // group_size if granularity == "group" else 1
    return 8 * n * ((k + 3) // 4) + 32 * n * groups


def _calibrate(model: nn.Module, layers: Mapping[str, nn.Linear], inputs: Iterable[Any]) -> dict[str, Tensor]:
    """Some activations ``(tokens, in_features)`` of each layer; the model runs in eval mode and keeps its own."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def take(name: str, x: Tensor) -> None:
        rows, found = x.detach().reshape(-1, x.shape[-1]), seen[name]
        if len(rows) and sum(map(len, found)) < _TOKENS:
            found.append(rows[:: -(-len(rows) // _TOKENS_A_BATCH)].float())

    with evaluating(model), inputs_of(layers, take):
        for batch in inputs:
            called(model, batch)
    if missing := [name for name, tokens in seen.items() if not tokens]:
        raise ValueError(f"inputs never reach {', '.join(missing[:3])}; give other inputs, or skip such layers")
    activations = {name: torch.cat(tokens) for name, tokens in seen.items()}
    for name, x in activations.items():
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"inputs bring NaN or Inf to {name}, and say nothing about its error")
    return activations


def _spend(errors: Mapping[str, list[float]], prices: Mapping[str, int], budget: float) -> dict[str, int]:
    """Depths that lower the summed error most for their bits.

    From depth 1 on, the step of the steepest fall a bit is taken while the budget has room; steps of several planes
    count too, because outliers make the error stand still at first and fall later.
    """
    depths = dict.fromkeys(errors, 1)
    left = budget - sum(prices.values()) + 0.5  # bits are whole numbers, the budget is a rounded product
    while True:
        steps = [
            ((e[depths[name] - 1] - e[depth - 1]) / (prices[name] * (depth - depths[name])), name, depth)
            for name, e in errors.items()
            for depth in range(depths[name] + 1, MAX_DEPTH + 1)
            if prices[name] * (depth - depths[name]) <= left
        ]
        if not steps:
            return depths
        _, name, depth = max(steps, key=lambda step: step[0])
        left -= prices[name] * (depth - depths[name])
        depths[name] = depth


def choose_depths(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    configs: Mapping[str, TernaryQuantConfig],
    bits_per_weight: float,
    inputs: Iterable[Any] | None = None,
) -> dict[str, int]:
    """The depth of each layer, 1 to 6, so that all together store at most ``bits_per_weight``; tied weights count once.

    Minimises, greedily, the sum over layers of ``|W - Q|^2 / |W|^2``; with ``inputs`` of
    the mean over tokens x of the layer of ``|(W - Q) x|^2 / |W x|^2``: a sum over tokens before the quotient would see
    little but the few tokens whose activations are a hundred times as large, which language models have.

    Raises:
        ValueError: a budget below that of depth 1, inputs that do not reach a layer or are not finite there.
    """
    names: dict[Hashable, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(_stored_as(layer, configs[name]), []).append(name)
    stored = {first: [first, *others] for first, *others in names.values()}
    prices = {name: _bits_of_a_plane(layers[name], configs[name]) for name in stored}
    weights = sum(layers[name].weight.numel() for name in stored)
    least = sum(prices.values()) / max(weights, 1)
    if bits_per_weight * weights < sum(prices.values()) - 0.5:
        raise ValueError(
            f"bits_per_weight={bits_per_weight:g} is below the {least:.3f} that depth 1 takes, scales included; "
            "give more, or larger groups"
        )
    activations = {} if inputs is None else _calibrate(model, layers, inputs)
    errors = dict.fromkeys(stored, [0.0] * MAX_DEPTH)
    for first, tied in stored.items():
        weight = gathered(layers[first].weight).detach()
        for name in tied:
            x = activations.get(name)
            with converting(name):
                found = [_error(weight, depth, configs[name], x) for depth in range(1, MAX_DEPTH + 1)]
            errors[first] = [a + b for a, b in zip(errors[first], found, strict=True)]
    depths = _spend(errors, prices, bits_per_weight * weights)
    return {name: depths[first] for first, tied in stored.items() for name in tied}


class PlaneMaker:
    """Makes layers of trit planes; layers with one weight, depth and configuration share their codes and scales."""

    def __init__(self) -> None:
        self._made: dict[tuple[Hashable, int], TernaryLinearInference] = {}

    def __call__(
        self, linear: nn.Linear, depth: int, config: TernaryQuantConfig, planes: Planes | None = None
    ) -> TernaryLinearInference:
        key = _stored_as(linear, config), depth
        if key not in self._made:
            self._made[key] = TernaryLinearInference.from_linear(linear, depth, config, planes)
            return self._made[key]
        first = self._made[key]
        layer = copy.deepcopy(first, {id(shared): shared for shared in (first.weight_packed, first.scale)})
        layer.bias = None if linear.bias is None else gathered(linear.bias).detach().clone()
        return layer.train(linear.training)
