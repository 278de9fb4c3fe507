"""Finds, while a model trains, what is known to ruin ternary training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn.first_weights import gain_of
from bittorch.nn.ternary_layer import TernaryLayer, gathered
from bittorch.utils.calls import UNCALLED, uncalled_layers
from bittorch.utils.conversion_report import conversion_report
from bittorch.utils.export import packed_codes
from bittorch.utils.health import MOSTLY_ZERO, silent_share, why_silent
from bittorch.utils.wrappers import named_layers


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a layer, or ``value`` beyond what is healthy."""

    layer: str
    kind: str
    value: float
    message: str

    def __str__(self) -> str:
        return f"{self.layer or 'the model'}: {self.message}"


@dataclasses.dataclass
class _Past:
    """A layer as it was: at the first check its scale, at the last one the rest."""

    first_scale: Tensor
    codes: Tensor
    weight: Tensor | None  # of half-precision masters alone


def _normalises(module: nn.Module) -> bool:
    """By the name of the class, since every library has norms of its own."""
    return "norm" in type(module).__name__.lower()


class AccuracyDoctor:
    """Looks at the ternary layers of a model whenever ``check()`` is called, and compares with the last time.

    What it finds, by ``kind``:

    - ``scale_rule``: ``scale="max"`` makes every kept weight as large as the largest; the squared error is then four
      times that of least squares for weights as torch draws them first, and over twenty times for trained ones.
    - ``gain``: the product of the gains of all layers (``gains``) is beyond ``gain``, and no module normalises: signals
      and gradients shrink or grow by that factor on their way through the model. ``value`` is the product.
    - ``silent``: hardly a code is not 0; a learned scale that no longer fits the weights does that. ``value`` is the
      share.
    - ``ternary_share``: less than half of the weights that multiply activations are ternary. ``value`` is the share.
    - ``dead_rows``: rows without a code but 0; they give the bias alone.
    - ``stalled``: a float16 or bfloat16 master most of whose weights did not move though they have a gradient: an
      update below half a unit in the last place is lost. Keep masters in float32, with autocast.
    - ``scale_drift``: the mean scale moved by more than ``drift`` since the first check.
    - ``never_called``: the layer never ran though others did: the model reads its weight itself, and runs it dense.
    - ``flip_rate``: more than ``flips`` of the codes changed since the last check: the rate is too high, or no longer
      decays. ``value`` is the share.

    Args:
        model: with `TernaryLinear` or `TernaryConv2d` layers, on any device. Codes are kept between checks,
            1 byte per weight, and copies of half-precision masters.
        flips: share of codes that may change between two checks; choose checks an epoch or some hundred steps apart.
        drift: factor by which a scale may grow or shrink.
        stalled: share of weights with a gradient that may stand still.
        gain: factor by which the product of the gains may differ from 1.

    Attributes:
        gains: of each ternary layer at the last check, by name: ``||Q(W)|| / ||W||``, times the factor by which
            `bittorch.nn.init.norm_preserving_` stretched the first weights.

    >>> doctor = bittorch.utils.AccuracyDoctor(model)
    >>> for epoch in range(epochs):
    ...     train(model)
    ...     for finding in doctor.check():
    ...         print(finding)

    Source: the thresholds are rules of thumb, not limits of a proof.
    """

    def __init__(
        self, model: nn.Module, *, flips: float = 0.1, drift: float = 3.0, stalled: float = 0.9, gain: float = 2.0
    ) -> None:
        if not (0 < flips <= 1 and drift > 1 and 0 < stalled <= 1 and gain > 1):
            raise ValueError(
                f"wanted 0 < flips <= 1, drift > 1, 0 < stalled <= 1 and gain > 1, "
                f"got flips={flips}, drift={drift}, stalled={stalled}, gain={gain}"
            )
        self.model = model
        self.flips, self.drift, self.stalled, self.gain = flips, drift, stalled, gain
        self.gains: dict[str, float] = {}
        self._past: dict[str, _Past] = {}

    @torch.no_grad()
    def check(self) -> list[Finding]:
        """What is wrong now, layer by layer; empty when nothing is. Call it before gradients are set to None.

        Raises:
            ValueError: a weight holds NaN or Inf, or is on the meta device; the message names the layer.
        """
        found = [Finding(name, "never_called", 1.0, UNCALLED) for name in uncalled_layers(self.model)]
        self.gains = {}
        for name, module in named_layers(self.model):
            if isinstance(module, TernaryLayer) and module.quantize:
                if module.config.packs:
                    found += self._check_layer(name, module)
                self.gains[name] = gain_of(module)
        return found + list(self._check_model())

    def _check_model(self) -> Iterator[Finding]:
        product = math.prod(self.gains.values())
        healthy = not product or 1 / self.gain <= product <= self.gain  # 0 has findings of its own
        if not healthy and not any(map(_normalises, self.model.modules())):
            yield Finding(
                "",
                "gain",
                product,
                f"the product of ||Q|| / ||W|| over its ternary layers is {product:.3g}, and no module normalises, so "
                "signals and gradients change by this factor; scale='rms' keeps it at 1, and "
                "bittorch.nn.init.norm_preserving_ lets first weights start there",
            )
        report = conversion_report(self.model)
        if report.complaint:
            yield Finding("", "ternary_share", report.linear_share, report.complaint)

    def _check_layer(self, name: str, layer: TernaryLayer) -> Iterator[Finding]:
        weight = layer._filters(gathered(layer.weight).detach()).flatten(1)
        w_packed, scale = packed_codes(layer, name, "check")
        codes = ops.ternary_unpack(w_packed, None, weight.shape[1], torch.int8)
        half = weight.dtype in (torch.float16, torch.bfloat16)
        past = self._past.get(name)
        self._past[name] = _Past(past.first_scale if past else scale.clone(), codes, weight.clone() if half else None)
        if layer.config.scale == "max":
            yield Finding(
                name,
                "scale_rule",
                1.0,
                "scale='max' makes every kept weight as large as the largest; use 'ls' or 'rms'",
            )
        dead = int((codes == 0).all(1).sum()) if codes.numel() else 0
        if (silent := silent_share(codes, weight)) > MOSTLY_ZERO:
            yield Finding(name, "silent", silent, why_silent(layer, silent))
        elif dead:
            yield Finding(name, "dead_rows", dead, f"{dead} of {len(codes)} rows hold no code but 0")
        if past and past.codes.shape == codes.shape and codes.numel():
            yield from self._compare(name, layer, past, codes, scale, weight)

    def _compare(
        self, name: str, layer: TernaryLayer, past: _Past, codes: Tensor, scale: Tensor, weight: Tensor
    ) -> Iterator[Finding]:
        flips = float((codes != past.codes).double().mean())
        if flips > self.flips:
            yield Finding(
                name,
                "flip_rate",
                flips,
                f"{flips:.1%} of the codes changed since the last check, above {self.flips:.0%}",
            )
        ratio = float(scale.double().mean() / past.first_scale.double().mean())
        if not 1 / self.drift <= ratio <= self.drift:
            yield Finding(name, "scale_drift", ratio, f"the mean scale is {ratio:.2f} times that of the first check")
        grad = layer.weight.grad
        if past.weight is not None and grad is not None:
            moved = layer._filters(gathered(grad)).flatten(1) != 0
            if int(moved.sum()):
                still = float((weight == past.weight)[moved].double().mean())
                if still > self.stalled:
                    yield Finding(
                        name,
                        "stalled",
                        still,
                        f"{still:.1%} of the {weight.dtype} weights with a gradient did not move since the last check; "
                        f"keep masters in float32",
                    )
