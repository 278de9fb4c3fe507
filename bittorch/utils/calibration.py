"""Trit planes of a whole model chosen by the activations of batches, block after block."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bittorch.nn.ternary_layer import gathered
from bittorch.quant import TernaryQuantConfig, unpack_trit_planes
from bittorch.quant.compensated import DAMPING, ROUNDS, check_granularity, check_numbers, compensated_integers
from bittorch.quant.ternary import check_finite
from bittorch.quant.trit_planes import check_grid, grid_integers, pack_grid
from bittorch.utils.block_chain import Chain, Stop, check_batches, evaluating, inputs_of
from bittorch.utils.calibration_state import CalibrationState, fingerprint
from bittorch.utils.conversion_checks import converting

Planes = tuple[Tensor, Tensor]
Run = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How `bittorch.quantize_model` looks at activations.

    Args:
        batches: what the model is called with: a mapping by keywords, a tuple or list by position, or one argument.
            Every token counts, so give batches without padding. They are kept in memory, with what enters each block.
        damping, search, rounds: as of `bittorch.quant.compensated_integers`.
        state: a folder that keeps the planes of each block that is done; a conversion that was ended goes on from
            there. It is made where it is not there.
        progress: called with layers done, all layers, and the name of the last one.

    Raises:
        TypeError: batches that are one batch, or nothing to go through; a search that is no bool, a state that is no
            path, a progress that cannot be called.
        ValueError: no batch; damping or rounds out of range.
    """

    batches: Iterable[Any]
    _: dataclasses.KW_ONLY
    damping: float = DAMPING
    search: bool = True
    rounds: int = ROUNDS
    state: str | Path | None = None
    progress: Callable[[int, int, str], object] | None = None

    def __post_init__(self) -> None:
        check_batches("calibrate", self.batches)
        object.__setattr__(self, "batches", list(self.batches))
        if not self.batches:
            raise ValueError("calibrate has no batch; give some that the model is called with, or leave it out")
        if not isinstance(self.search, bool):
            raise TypeError(f"search must be True or False, got {self.search!r}")
        if not isinstance(self.state, str | Path | None):
            raise TypeError(f"state must be the path of a folder, got {self.state!r}")
        if not (self.progress is None or callable(self.progress)):
            raise TypeError(f"progress must be a function, got {self.progress!r}")
        check_numbers(self.damping, self.rounds)


def calibrated_planes(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    configs: Mapping[str, TernaryQuantConfig],
    depths: Mapping[str, int],
    calibration: Calibration,
) -> dict[str, Planes]:
    """Packed planes and scales of each layer, as `bittorch.quant.pack_trit_planes` has them.

    Layers are converted in the order in which the model calls them; the inputs of a layer are those that it gets from
    layers which are converted already, their weights rounded to the dtype of the model. In a model that is a chain of
    blocks, such as decoder layers, one block at a time holds converted weights; of layers with the same input,
    or of experts, the sums of ``x x^T`` are made in one pass. The model's own weights are back in their places at the
    end, also where an error ends it.

    Raises:
        ValueError: activations with NaN or Inf, naming the layer; a state folder of another conversion.

    Warns:
        UserWarning: layers that no batch reaches, which are rounded to nearest; layers that see fewer tokens than they
            have columns.
    """
    return Conversion(model, layers, configs, depths, calibration)()


def check_layer(layer: nn.Linear, config: TernaryQuantConfig) -> None:
    """Raises ValueError, before the work, where a layer cannot be calibrated."""
    check_grid(config)
    config.check_in_features(layer.in_features)
    check_granularity(config.grouping[0])
    weight = gathered(layer.weight).detach()
    check_finite(weight, weight)


def _call(run: Callable[[int, Tensor], object], x: Sequence[Tensor], batch: int) -> None:
    run(batch, x[batch])


class Conversion:
    """A calibrated conversion of one model; see `calibrated_planes`. What a weight becomes is two methods."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        configs: Mapping[str, TernaryQuantConfig],
        depths: Mapping[str, int],
        calibration: Calibration,
    ) -> None:
        self.model, self.layers, self.configs, self.depths, self.how = model, layers, configs, depths, calibration
        self.batches: Sequence[Any] = list(calibration.batches)
        self.weights = {name: layer.weight for name, layer in layers.items()}
        self.planes: dict[str, Planes] = {}
        self.few: dict[str, tuple[int, int]] = {}  # tokens and columns
        self._shared: dict[Hashable, Planes] = {}
        self.state: CalibrationState | None = None
        if calibration.state is not None:
            numbers = {"damping": calibration.damping, "search": calibration.search, "rounds": calibration.rounds}
            given = fingerprint(model, self.weights, configs, depths, self.batches)
            self.state = CalibrationState(Path(calibration.state), {**given, **numbers})

    def __call__(self) -> dict[str, Planes]:
        try:
            with evaluating(self.model):
                self._seen()
        finally:
            self.restore(self.layers)
        if unseen := [name for name in self.layers if name not in self.planes]:
            self._unseen(unseen)
        self._warn_of_few()
        return self.planes

    def _seen(self) -> None:
        """Planes of the layers that the batches reach."""
        chain = self.chain = Chain(self.model, self.layers, self.batches)
        if chain.before:
            part = "before the blocks" if chain.blocks else "model"
            self._convert(part, {name: name for name in chain.before}, chain.run_whole)
            if chain.blocks:
                chain.trace()
        if chain.blocks:
            self._blocks(chain)

    def _blocks(self, chain: Chain) -> None:
        x, after = chain.first_inputs(), chain.after()
        for i in range(len(chain.blocks)):
            inside = chain.inside(i)
            self._convert(f"block {i}", inside, partial(_call, partial(chain.run, i), x))
            if after or i + 1 < len(chain.blocks):
                for batch, own in enumerate(x):
                    x[batch] = chain.run(i, batch, own)
            self.restore(inside)
        if after:
            self._convert("after the blocks", {name: name for name in after}, partial(_call, chain.run_rest, x))

    def restore(self, names: Iterable[str]) -> None:
        """The model's own weights in their places."""
        for name in names:
            self.layers[name].weight = self.weights[name]

    def _convert(self, part: str, names: Mapping[str, str], run: Run) -> None:
        """Planes of some layers, given with their names inside their block; the model then has their weights."""
        if not names:
            return
        held = self.state.load(part, names) if self.state else None
        if held is None:
            for stage in self._stages(names):
                sums = self._sums(stage, run)
                for name in stage:
                    self._put(name, self._made(name, sums[self.chain.leader[name]]))
                    self._tell(name)
            if self.state:
                self.state.save(part, {name: self.planes[name] for name in names})
        else:
            for name in names:
                self._put(name, held[name])
            self._tell(name)

    def _stages(self, names: Mapping[str, str]) -> list[list[str]]:
        """Layers that are looked at in one pass: those with one input, and experts, whose names differ in a number."""
        stages: list[list[str]] = []
        keys: list[set[Any]] = []
        for name, inside in names.items():
            shape = tuple(self.layers[name].weight.shape)
            own = {self.chain.leader[name], (re.sub(r"\d+", "#", inside), shape) if self.chain.blocks else name}
            found = next((i for i, known in enumerate(keys) if known & own), None)
            if found is None:
                stages.append([name])
                keys.append(own)
            else:
                stages[found].append(name)
                keys[found] |= own
        return stages

    def _sums(self, stage: Sequence[str], run: Run) -> dict[str, Tensor]:
        """The sum of ``x x^T`` over the tokens of all batches, by the first layer of each input."""
        leaders = {name: self.layers[name] for name in (self.chain.leader[name] for name in stage)}
        sums = {}
        for name, layer in leaders.items():
            k = layer.in_features
            sums[name] = torch.zeros((k, k), dtype=torch.float64, device=self.weights[name].device)
        left, tokens = [0], dict.fromkeys(leaders, 0)

        def take(name: str, x: Tensor) -> None:
            x = x.detach().reshape(-1, leaders[name].in_features)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"calibrate brings NaN or Inf to {name}; give other batches, or a model in float32")
            with torch.autocast(x.device.type, enabled=False):
                sums[name] += x.T @ x
            tokens[name] += len(x)
            left[0] -= 1
            if left[0] == 0:
                raise Stop

        with inputs_of(leaders, take):
            for batch, counts in enumerate(self.chain.counts):
                left[0] = sum(counts[name] for name in leaders)
                if left[0]:
                    run(batch)
        for name, layer in leaders.items():
            if tokens[name] < layer.in_features:
                self.few[name] = tokens[name], layer.in_features
        return sums

    def made(self, name: str, weight: Tensor, hessian: Tensor) -> Planes:
        """What a weight becomes."""
        depth = self.depths[name]
        granularity, group_size = self.configs[name].grouping
        q, scale = compensated_integers(
            weight,
            hessian,
            depth,
            granularity,
            group_size,
            damping=self.how.damping,
            search=self.how.search,
            rounds=self.how.rounds,
        )
        return pack_grid(q, scale, depth)

    def dense(self, name: str, planes: Planes) -> Tensor:
        """The weight that it stands for."""
        layer = self.layers[name]
        return unpack_trit_planes(*planes, self.depths[name], layer.in_features, self.weights[name].dtype)

    def _made(self, name: str, hessian: Tensor) -> Planes:
        """A weight that several layers share becomes what it is for the first."""
        if (held := self._shared.get(self._stored_as(name))) is not None:
            return held
        with converting(name):
            return self.made(name, gathered(self.weights[name]).detach(), hessian)

    def _stored_as(self, name: str) -> Hashable:
        """Equal for layers that share their planes."""
        return id(self.weights[name]), self.depths[name], self.configs[name]

    def _put(self, name: str, planes: Planes) -> None:
        """Planes of a layer, and their weight in the model."""
        device = self.weights[name].device
        self.planes[name] = self._shared[self._stored_as(name)] = planes[0].to(device), planes[1].to(device)
        self.layers[name].weight = nn.Parameter(self.dense(name, self.planes[name]), requires_grad=False)

    def _tell(self, name: str) -> None:
        if self.how.progress is not None:
            self.how.progress(len(self.planes), len(self.layers), name)

    def _unseen(self, names: Sequence[str]) -> None:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(f"no batch of calibrate reaches {', '.join(names[:5])}{more}: rounded to nearest", stacklevel=7)
        for name in names:
            q, scale = grid_integers(gathered(self.weights[name]), self.depths[name], *self.configs[name].grouping)
            self.planes[name] = pack_grid(q, scale, self.depths[name])
            self._tell(name)

    def _warn_of_few(self) -> None:
        if self.few:
            name, (tokens, columns) = next(iter(self.few.items()))
            warnings.warn(
                f"calibrate has few tokens: {len(self.few)} inputs see fewer than they have columns, such as {name} "
                f"{tokens} for {columns}; give several times as many",
                stacklevel=7,
            )
