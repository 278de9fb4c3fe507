"""The one training loop: any task, FP32 or ternary."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data import Split
from keep import Kept
from recipe import Recipe
from task import Task, logits, score_of
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from bittorch import train

SCORES = 10  # points of a learning curve
CURVE_SAMPLES = {
    "accuracy": 2000,
    "nats": 128,
    "r2": 2000,
}  # images, rows or windows in those points; the score of a run takes all


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Matrices decay; biases, norms and learned scales do not."""
    named = list(model.named_parameters())
    decays = [p for name, p in named if p.dim() > 1 and not name.endswith("weight_scale")]
    rest = [p for name, p in named if not (p.dim() > 1 and not name.endswith("weight_scale"))]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    rising = max(1, int(recipe.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        fallen = (step - rising) / max(1, steps - rising)
        return recipe.lr_end + (1 - recipe.lr_end) * (1 + math.cos(math.pi * fallen)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def schedules(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> list[Any]:
    made: list[Any] = []
    if recipe.ternary_after:
        made.append(train.TernaryAfter(model, int(recipe.ternary_after * steps)))
    if recipe.quant_warmup:
        made.append(train.QuantWarmup(model, int(recipe.quant_warmup * steps)))
    if recipe.decay_off < 1:
        made.append(train.WeightDecayOff(optimizer, int(recipe.decay_off * steps)))
    return made


def fit(
    model: nn.Module,
    task: Task,
    split: Split,
    recipe: Recipe,
    seed: int,
    label: str,
    teacher: nn.Module | None = None,
    show: Callable[..., Any] = tqdm,
    keep: Path | None = None,
) -> list[dict[str, float]]:
    """Trains in place; returns the learning curve: step, mean training loss since the last point, score.

    With ``keep``, a file, a run that was stopped goes on where it was (`keep.Kept`).
    """
    steps = task.steps(split, recipe)
    optimizer = make_optimizer(model, recipe)
    stepped = [make_schedule(optimizer, recipe, steps), *schedules(model, optimizer, recipe, steps)]
    batches = task.batches(split, recipe, seed)
    points = {math.ceil(steps * i / min(SCORES, steps)) for i in range(1, min(SCORES, steps) + 1)}
    curve: list[dict[str, float]] = []
    losses = torch.zeros((), device=split.x.device)
    part = slice(CURVE_SAMPLES[task.metric])
    kept = Kept(keep, {"run": label, **dataclasses.asdict(recipe)})
    parts = {"model": model, "optimizer": optimizer, **{f"schedule{i}": s for i, s in enumerate(stepped)}}
    done = 0
    if (values := kept.restore(**parts)) is not None:
        done, curve, losses = values["step"], values["curve"], values["losses"].to(losses.device)
        for _ in range(done):  # the batches of a seed follow from those before
            next(batches)
    bar = show(range(done + 1, steps + 1), desc=label, mininterval=1.0, initial=done, total=steps)
    model.train()
    for step in bar:
        x, y = next(batches)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(model, teacher, x, y, recipe)
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        for schedule in stepped:
            schedule.step()
        losses += loss.detach()
        if step in points:
            score = score_of(task, logits(model, split.x_scored[part]), split.y_scored[part])
            last = curve[-1]["step"] if curve else 0
            curve.append({"step": step, "loss": losses.item() / (step - last), "score": score})
            bar.set_postfix(loss=f"{curve[-1]['loss']:.3f}", score=f"{score:.3f}")
            losses.zero_()
            model.train()
        kept.save({"step": step, "curve": curve, "losses": losses}, **parts)
    kept.drop()
    return curve


def loss_of(
    model: nn.Module, teacher: nn.Module | None, x: torch.Tensor, y: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    out = model(x)
    if y.is_floating_point():  # a regression
        return F.mse_loss(out, y)
    loss = F.cross_entropy(out.flatten(0, -2), y.flatten(), label_smoothing=recipe.label_smoothing)
    if teacher is not None and recipe.distill:
        with torch.no_grad():
            target = teacher.eval()(x)
        loss = loss + recipe.distill * train.distill.logits_kl(out, target, recipe.temperature)
    return loss
