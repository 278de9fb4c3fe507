"""Schedules of ternary training. Each counts its calls of ``step()``, one after each optimiser step or each epoch, and
resumes from ``state_dict()`` as a learning-rate scheduler does."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from bittorch.nn.ternary_layer import TernaryLayer


def _ternary(model: nn.Module) -> list[TernaryLayer]:
    return [module for module in model.modules() if isinstance(module, TernaryLayer)]


def _check_any(layers: list[TernaryLayer], model: nn.Module, schedule: str) -> None:
    if not layers:
        there = _ternary(model)
        why = (
            f"all {len(there)} ternary layers of the model have quantize=False; set quantize=True on them first"
            if there
            else "the model has no TernaryLinear or TernaryConv2d; make some with bittorch.quantize_"
        )
        warnings.warn(f"{schedule} does nothing: {why}", stacklevel=3)  # the caller of the schedule


class _Schedule:
    """Counts steps and applies what stands at each."""

    def __init__(self) -> None:
        self.last_step = 0
        self._apply()

    def step(self) -> None:
        """The next step begins."""
        self.last_step += 1
        self._apply()

    def _apply(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of `state_dict`."""
        self.last_step = state["last_step"]
        self._apply()


def _check_count(name: str, value: int) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")


class QuantWarmup(_Schedule):
    """Raises the share of quantisation from 0 to 1: ``v + quant_lambda * (Q(v) - v)`` for weights and activations.

    Helps where a large trained model becomes ternary; small networks gain little: docs/notes/accuracy.md. While it is
    below 1 the product is dense, and ``eval()`` and export quantise in full.

    Args:
        model: with `TernaryLinear` or `TernaryConv2d` layers, whose ``quant_lambda`` is set.
        steps: after so many the share is 1. 0 is no warm-up.

    Raises:
        ValueError: negative steps.

    Warns:
        UserWarning: there is no such layer.

    >>> warmup = bittorch.train.QuantWarmup(model, steps=1000)
    >>> for x, y in batches:
    ...     loss(model(x), y).backward()
    ...     optimizer.step()
    ...     warmup.step()

    Source: Hugging Face 2024, fine-tuning to 1.58 bits (lambda warm-up).
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        _check_count("steps", steps)
        self.layers, self.steps = _ternary(model), steps
        _check_any(self.layers, model, "QuantWarmup")
        super().__init__()

    def _apply(self) -> None:
        share = min(1.0, self.last_step / self.steps) if self.steps else 1.0
        for layer in self.layers:
            layer.quant_lambda = share


class TernaryAfter(_Schedule):
    """Two stages: layers run in full precision first (``quantize=False``), and are ternary from step ``at`` on.

    In the sources below full precision first, for a tenth to nine tenths of the steps, beats ternary from scratch;
    small networks gain little or lose: docs/notes/accuracy.md. A copy of the model that is made before ``at``
    (for an average of weights, say) keeps ``quantize=False``: make it before this schedule, or set ``quantize`` on
    its layers.

    Args:
        model: with `TernaryLinear` or `TernaryConv2d` layers, of which those with ``quantize=True`` now take part.
        at: the first step with ternary weights.

    Raises:
        ValueError: negative ``at``.

    Warns:
        UserWarning: no layer takes part.

    Source: Liu et al. 2025 (ParetoQ), Nielsen and Schneider-Kamp 2024 (16-to-1.58 bits).
    """

    def __init__(self, model: nn.Module, at: int) -> None:
        _check_count("at", at)
        self.layers, self.at = [layer for layer in _ternary(model) if layer.quantize], at
        _check_any(self.layers, model, "TernaryAfter")
        super().__init__()

    def _apply(self) -> None:
        for layer in self.layers:
            if self.last_step >= self.at and not layer.quantize:
                layer.reset_scale()  # a learned scale starts from the weights as they have become
            layer.quantize = self.last_step >= self.at

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for layer in self.layers:
            layer.quantize = state["last_step"] >= self.at  # no new start for a learned scale
        super().load_state_dict(state)


class WeightDecayOff(_Schedule):
    """Sets the weight decay of every parameter group to 0 from step ``at`` on: late decay only makes codes flip.

    What the decay was stands in the optimiser: to go back before ``at``, load the optimiser's state as well.

    Args:
        optimizer: whose ``param_groups`` have ``weight_decay``.
        at: the first step without; half of all steps is usual.

    Raises:
        ValueError: negative ``at``, or an optimiser without weight decay.

    Source: Ma et al. 2024 (BitNet b1.58, training tips).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, at: int) -> None:
        _check_count("at", at)
        if not any("weight_decay" in group for group in optimizer.param_groups):
            raise ValueError(f"{type(optimizer).__name__} has no weight_decay to switch off")
        self.optimizer, self.at = optimizer, at
        super().__init__()

    def _apply(self) -> None:
        if self.last_step >= self.at:
            for group in self.optimizer.param_groups:
                if "weight_decay" in group:
                    group["weight_decay"] = 0.0
