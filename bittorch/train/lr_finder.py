"""A learning rate from a short trial: the rate rises at each step, and the loss says which rates teach."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bittorch.train.restore import restored

FEWEST = 20  # losses; with fewer a slope is noise
DIVERGED = 2.0  # so many times the first loss above the best
LEAST_FALL = 0.01  # of the first losses


@dataclass(frozen=True)
class LearningRates:
    """What `find_lr` saw.

    Attributes:
        rates: those that were tried, rising by a constant factor.
        losses: of one batch at each of ``rates``, before the step with this rate; all finite.
        smoothed: ``losses``, averaged with their neighbours on both sides.
        suggestion: the geometric mean of two rates: where the smoothed loss falls fastest, and where it is lowest; at
            most half of the latter. None where the loss does not fall.
        reason: why the trial ended, and what to change where there is no suggestion or where it is at an end of the
            range.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    reason: str

    def __str__(self) -> str:
        found = "no suggestion" if self.suggestion is None else f"suggested learning rate {self.suggestion:.2g}"
        return f"{found} after {len(self.rates)} rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}: {self.reason}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws losses over rates into a file, whose suffix chooses the format.

        Raises:
            ImportError: matplotlib is missing; it comes with ``bittorch[plot]``.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib; install bittorch[plot]") from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.rates, self.losses, ".", color="0.7", label="loss of a batch")
        axis.plot(self.rates, self.smoothed, color="#0072b2", label="smoothed")
        if self.suggestion is not None:
            axis.axvline(self.suggestion, color="#d55e00", ls="--", label=f"suggestion {self.suggestion:.2g}")
        lowest, start = min(self.smoothed), self.smoothed[0]
        margin = 0.1 * max(start - lowest, 0.1 * abs(start), 1e-12)
        highest = max(start, *self.smoothed[: self.smoothed.index(lowest) + 1])
        axis.set_ylim(min(lowest, *self.losses) - margin, highest + 4 * margin)
        axis.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[..., Tensor] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    closure: Callable[[], Tensor | float] | None = None,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> LearningRates:
    """Trains for a moment while the learning rate rises, and suggests the highest rate of a schedule.

    ``rate_i = lowest * (highest / lowest)^(i / (steps - 1))``. The trial ends early where the loss diverges. Afterwards
    model, optimiser and random numbers are exactly as before, also after an exception or Ctrl-C, so the call may stand
    before any training loop. It takes the memory of one more copy of the parameters and of the optimiser's state.

    Give the loss in one of two ways. With ``loss_fn`` and ``batches``, a batch ``(*inputs, target)`` costs
    ``loss_fn(model(*inputs), target)``, and a batch that is a mapping ``loss_fn(model(**batch))``. With ``closure``,
    your function makes one forward and one backward pass, for autocast, accumulation, or several losses, and returns
    the loss. Use the same batches and the same size of batch as for training.

    Args:
        model: a model in ``eval()`` is trained as after ``train()``; one in training mode keeps its modules' modes.
        optimizer: as for training. Its groups keep the ratios of their learning rates, and ``rate`` is that of the
            group with the largest.
        loss_fn: returns one number.
        batches: a `torch.utils.data.DataLoader` or any iterable. It begins anew when it ends; an iterator does not.
        closure: returns the loss as a number or a tensor of one element. In several processes it must return the same
            loss in each, their mean for example, or they do not stop together.
        lowest, highest: the range; SGD may need a higher end than Adam.
        steps: rates to try, a batch for each.

    Returns:
        `LearningRates`: rates, losses, a suggestion or the reason for having none, and a plot.

    Raises:
        ValueError: a bad range, neither or both kinds of loss, an optimiser with no parameter of the model, parameters
            without values, no batches, a loss of more than one element.
        FloatingPointError: the loss is not finite from the start, before any step.

    Warns:
        UserWarning: there is no suggestion; the text has the reason.

    Example::

        found = bittorch.train.find_lr(model, optimizer, torch.nn.functional.cross_entropy, loader)
        found.plot("rates.png")

    Not restored is what only your own function knows: a GradScaler, an iterator, attributes of modules that are neither
    parameters nor buffers.

    Source: Smith 2017 (range test); Smith 2018.
    """
    _check(model, optimizer, lowest, highest, steps)
    rates = [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]
    if closure is None:
        if loss_fn is None or batches is None:
            raise ValueError("find_lr needs loss_fn and batches, or closure")
        closure = _closure(model, loss_fn, batches)
    elif loss_fn is not None or batches is not None:
        raise ValueError("find_lr takes loss_fn and batches, or closure, not both")
    with restored(model, optimizer, batches):
        if not model.training:
            model.train()
        losses, ended = _trial(optimizer, closure, rates)
    found = _result(rates[: len(losses)], losses, ended)
    if found.suggestion is None:
        warnings.warn(f"find_lr has no suggestion: {found.reason}", stacklevel=2)
    return found


def _check(model: nn.Module, optimizer: torch.optim.Optimizer, lowest: float, highest: float, steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"rates must be 0 < lowest < highest, got lowest={lowest} and highest={highest}")
    if steps < FEWEST:
        raise ValueError(f"steps must be at least {FEWEST}, got {steps}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name} has no values yet (meta device, or lazy): give it some first")
    ours = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimizer has no parameter of the model: make the optimizer from this model")


class _NoMoreBatches(Exception):
    """The iterator of batches has ended."""


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if not count:
            raise _NoMoreBatches


def _closure(model: nn.Module, loss_fn: Callable[..., Tensor], batches: Iterable[Any]) -> Callable[[], Tensor]:
    source = _endless(batches)

    def closure() -> Tensor:
        batch = next(source)
        loss = loss_fn(model(**batch)) if isinstance(batch, Mapping) else loss_fn(model(*batch[:-1]), batch[-1])
        if loss.numel() != 1:
            raise ValueError(f"loss_fn must return one number, got a tensor of shape {tuple(loss.shape)}")
        loss.backward()
        return loss

    return closure


def _set_rate(optimizer: torch.optim.Optimizer, shares: list[float], rate: float) -> None:
    for group, share in zip(optimizer.param_groups, shares, strict=True):
        lr = group["lr"]
        group["lr"] = torch.full_like(lr, rate * share) if isinstance(lr, Tensor) else rate * share


def _shares(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's rate to the largest; a scheduler that begins at 0 keeps the rate itself in initial_lr."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    largest = max(rates)
    return [rate / largest for rate in rates] if largest > 0 else [1.0] * len(rates)


def _trial(
    optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor | float], rates: list[float]
) -> tuple[list[float], str]:
    """The losses, and why they end."""
    losses: list[float] = []
    shares = _shares(optimizer)
    for rate in rates:
        _set_rate(optimizer, shares, rate)
        optimizer.zero_grad()
        try:
            loss = float(torch.as_tensor(closure()).detach())
        except _NoMoreBatches:
            if not losses:
                raise ValueError("batches has no batch") from None
            return losses, f"the batches ended after {len(losses)} of {len(rates)}"
        if not math.isfinite(loss):
            if not losses:
                raise FloatingPointError(
                    f"the loss is {loss} before any step: the fault is in data, loss or model, not in the rate"
                )
            return losses, f"the loss is {loss} at rate {rate:.2g}"
        losses.append(loss)
        if _diverged(losses):
            return losses, f"the loss diverges at rate {rate:.2g}"
        optimizer.step()
    return losses, f"the range ends at {rates[-1]:.2g}"


def _diverged(losses: list[float]) -> bool:
    """The last three losses are far above the best mean of three."""
    if len(losses) < 6:
        return False
    means = [sum(losses[i : i + 3]) / 3 for i in range(len(losses) - 2)]
    best = min(means)
    return means[-1] - best > DIVERGED * max(abs(means[0]), means[0] - best)


def _smoothed(losses: list[float], reach: int) -> list[float]:
    """Means over ``reach`` neighbours on both sides, triangular weights: no lag behind the rate."""
    found = []
    for i in range(len(losses)):
        near = range(max(0, i - reach), min(len(losses), i + reach + 1))
        weights = [reach + 1 - abs(i - j) for j in near]
        found.append(sum(w * losses[j] for w, j in zip(weights, near, strict=True)) / sum(weights))
    return found


def _result(rates: list[float], losses: list[float], ended: str) -> LearningRates:
    reach = max(2, len(losses) // 20)
    smoothed = _smoothed(losses, reach)

    def result(suggestion: float | None, reason: str) -> LearningRates:
        return LearningRates(rates, losses, smoothed, suggestion, reason)

    if len(losses) < FEWEST:
        return result(None, f"{ended}, and {len(losses)} losses are too few; at least {FEWEST} are needed")
    start = losses[: FEWEST // 2]
    level = sum(start) / len(start)
    spread = math.sqrt(sum((loss - level) ** 2 for loss in start) / (len(start) - 1))
    best = min(range(len(smoothed)), key=smoothed.__getitem__)
    if level - smoothed[best] < max(spread, LEAST_FALL * abs(level)):
        return result(None, f"the loss does not fall below its start of {level:.4g} at any rate; {ended}")
    slopes = [
        (smoothed[min(i + reach, best)] - smoothed[max(i - reach, 0)]) / (min(i + reach, best) - max(i - reach, 0))
        for i in range(best + 1)
    ]
    steepest = min(range(len(slopes)), key=slopes.__getitem__)
    if best == len(rates) - 1 and ended.startswith("the range"):
        ended += ", where the loss still falls: try a larger highest"
    elif steepest <= reach:
        ended += "; the loss falls fastest at the start of the range: try a smaller lowest"
    return result(min(math.sqrt(rates[steepest] * rates[best]), rates[best] / 2), ended)
