"""Recipes: the optimiser and the schedules that the tables of docs/notes/accuracy.md were made with.

docs/guide/train.md shows them in a plain loop, docs/guide/trainer.md in the Trainer of transformers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.train.parameters import parameter_groups
from bittorch.train.schedules import QuantWarmup, WeightDecayOff

__all__ = ["Recipe", "from_fp32", "from_scratch"]


class Recipe:
    """An optimiser with its schedules, for ``steps`` steps of training. Make one with a function of this module.

    Attributes:
        optimizer: AdamW, with weight decay on weights alone (`bittorch.train.parameter_groups`).
        lr_schedule: a scheduler of torch: a linear rise, then a cosine.
        schedules: the others, a `QuantWarmup` and a `WeightDecayOff` where the settings ask for them.
        settings: the arguments that the recipe was made with.
    """

    def __init__(self, model: nn.Module, settings: dict[str, Any]) -> None:
        self.model, self.settings = model, settings
        groups = parameter_groups(model, settings["weight_decay"])
        self.optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=settings["betas"])
        self.lr_schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._share)
        steps = settings["steps"]
        self.schedules: list[QuantWarmup | WeightDecayOff] = []
        if settings["quant_warmup"]:
            self.schedules.append(QuantWarmup(model, int(settings["quant_warmup"] * steps)))
        if settings["weight_decay"] and settings["decay_off"] < 1:
            self.schedules.append(WeightDecayOff(self.optimizer, int(settings["decay_off"] * steps)))

    def _share(self, step: int) -> float:
        """The learning rate of a step, as a share of the highest."""
        steps, lr_end = self.settings["steps"], self.settings["lr_end"]
        rising = max(1, int(self.settings["warmup"] * steps))
        if step < rising:
            return (step + 1) / rising
        fallen = min(1.0, (step - rising) / max(1, steps - rising))
        return float(lr_end + (1 - lr_end) * (1 + math.cos(math.pi * fallen)) / 2)

    def step(self) -> None:
        """After ``loss.backward()``: clips gradients, updates the weights, clears gradients, steps every schedule."""
        if self.settings["clip"]:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        for schedule in (self.lr_schedule, *self.schedules):
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Where training is, without weights and optimiser: save their state dicts beside it."""
        return {
            "settings": dict(self.settings),
            "layers": _described(self.model),
            "lr_schedule": self.lr_schedule.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`. Load this one first, since it compares what the others cannot tell.

        Raises:
            ValueError: this recipe has other settings than the saved one, or a layer another configuration. The text
                names both values. Nothing is changed then.
        """
        _compare("recipe", self.settings, state["settings"])
        here, saved = _described(self.model), state["layers"]
        if here.keys() != saved.keys():
            raise ValueError(
                f"the checkpoint has {len(saved)} ternary layers, this model {len(here)}; only there: "
                f"{_names(saved.keys() - here.keys())}; only here: {_names(here.keys() - saved.keys())}"
            )
        for name, values in here.items():
            _compare(f"layer {name}", values, saved[name])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        for schedule, part in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(part)


def _described(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The configuration of every ternary layer."""
    layers = model.named_modules()
    return {name: m.config.to_dict() for name, m in layers if isinstance(m, TernaryLayer)}


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"


def _compare(what: str, here: dict[str, Any], saved: dict[str, Any]) -> None:
    keys = [key for key in {**saved, **here} if here.get(key) != saved.get(key)]
    if keys:
        each = ", ".join(f"{key} is {here.get(key)!r} here and {saved.get(key)!r} in the checkpoint" for key in keys)
        raise ValueError(f"{what}: {each}; use the values of the checkpoint, or load its weights alone and start anew")


def from_scratch(
    model: nn.Module,
    steps: int,
    *,
    lr: float = 3e-3,
    lr_end: float = 0.0,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    decay_off: float = 0.5,
    clip: float = 0.0,
    quant_warmup: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Recipe:
    """The recipe of a model that begins with random weights.

    ``lr_t`` rises linearly over the share ``warmup`` of the steps, and falls as a cosine to ``lr * lr_end``.

    Args:
        model: with its ternary layers, on its device.
        steps: of the optimiser, in all.
        lr: the highest learning rate. The default is that of the image tasks in docs/notes/accuracy.md, which have
            BatchNorm; `bittorch.train.find_lr` finds one for others.
        lr_end: the last rate, as a share of ``lr``.
        warmup: share of the steps in which the rate rises.
        weight_decay: of weights; biases, norms and learned scales have none.
        decay_off: share of the steps after which there is no decay; 1 keeps it.
        clip: largest norm of all gradients; 0 does not clip.
        quant_warmup: share of the steps in which the share of quantisation rises to 1; 0 is ternary from the start.
        betas: of AdamW.

    Raises:
        ValueError: a value out of range.
    """
    settings = {
        "steps": steps,
        "lr": lr,
        "lr_end": lr_end,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "decay_off": decay_off,
        "clip": clip,
        "quant_warmup": quant_warmup,
        "betas": list(betas),
    }
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for name in ("lr_end", "warmup", "decay_off", "quant_warmup"):
        if not 0 <= settings[name] <= 1:  # type: ignore[operator]
            raise ValueError(f"{name} is a share and must be from 0 to 1, got {settings[name]}")
    if not (lr > 0 and clip >= 0):
        raise ValueError(f"lr must be above 0 and clip at least 0, got lr={lr} and clip={clip}")
    return Recipe(model, settings)


def from_fp32(model: nn.Module, steps: int, *, quant_warmup: float = 0.25, **options: Any) -> Recipe:
    """The recipe of a trained model that has become ternary, by `bittorch.quantize_` for example.

    It is `from_scratch` with a share of quantisation that rises over a quarter of the steps, so that the trained
    function changes slowly. The other arguments and errors are those of `from_scratch`. Add the logits of the dense
    model to the loss (`bittorch.train.distill.logits_kl`): they help most.

    Source: Hugging Face 2024, fine-tuning to 1.58 bits (lambda warm-up).
    """
    return from_scratch(model, steps, quant_warmup=quant_warmup, **options)
