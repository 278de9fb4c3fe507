"""What a task file defines: a net, its data and its recipe."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from data import Split, characters, images
from recipe import Recipe
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Task:
    """A net and how it is scored.

    Args:
        title: of the table's row; layers that stay FP32 are named in it.
        build: the FP32 net, of a recipe.
        recipe: the default one.
        read: the images of a folder (`data.images`); None for text.
        text: the file of a text, and ``context`` its characters a window.
        make: data without a folder, of the split (final or not) and the recipe.
        regression: the score is R2 in percent, of squared errors; ``y`` is float.
        augment: random crops and flips while training.
    """

    name: str
    title: str
    build: Callable[[Recipe], nn.Module]
    recipe: Recipe
    read: Callable[[Path], list[Any]] | None = None
    text: str = ""
    context: int = 0
    make: Callable[[bool, Recipe], Split] | None = None
    regression: bool = False
    augment: bool = False

    @property
    def metric(self) -> Literal["accuracy", "nats", "r2"]:
        return "nats" if self.text else "r2" if self.regression else "accuracy"

    def load(self, folder: Path, final: bool, recipe: Recipe) -> Split:
        if self.read is not None:
            return images(self.read, folder, final, recipe.train_size)
        if self.make is not None:
            return self.make(final, recipe)
        return characters(folder / self.text, self.context, final)

    def steps(self, split: Split, recipe: Recipe) -> int:
        return recipe.steps or recipe.epochs * -(-len(split.x) // recipe.batch)

    def batches(self, split: Split, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless; the same for every net of a seed."""
        order = torch.Generator().manual_seed(seed)
        while self.text:
            starts = torch.randint(len(split.x) - self.context, (recipe.batch, 1), generator=order)
            window = split.x[starts.to(split.x.device) + torch.arange(self.context + 1, device=split.x.device)]
            yield window[:, :-1], window[:, 1:]
        while True:
            for index in torch.randperm(len(split.x), generator=order).split(recipe.batch):
                x = split.x[index.to(split.x.device)]
                yield crop_and_flip(x, order) if self.augment else x, split.y[index.to(split.y.device)]


def crop_and_flip(x: Tensor, order: torch.Generator) -> Tensor:
    """Random crops of images padded by 4, half of them mirrored, each image its own."""
    n, _, h, w = x.shape
    top, left = (torch.randint(9, (n, 1), generator=order) for _ in range(2))
    mirrored = torch.rand(n, 1, generator=order) < 0.5
    columns = torch.where(mirrored, torch.arange(w).flip(0), torch.arange(w)) + left
    rows = torch.arange(h) + top
    rows, columns = rows.to(x.device), columns.to(x.device)
    sample = torch.arange(n, device=x.device)[:, None, None]
    return F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def logits(model: nn.Module, x: Tensor, batch: int = 128) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(batch)])


def score_of(task: Task, logits: Tensor, y: Tensor) -> float:
    """Accuracy in percent, R2 in percent, or mean cross-entropy in nats."""
    if task.metric == "accuracy":
        return 100 * (logits.argmax(-1) == y).double().mean().item()
    if task.metric == "r2":
        return 100 * (1 - F.mse_loss(logits.double(), y.double()) / y.double().var(correction=0)).item()
    return F.cross_entropy(logits.flatten(0, 1), y.flatten()).item()


def mlp(recipe: Recipe, sizes: tuple[int, ...] = (784, 256, 128, 10)) -> nn.Sequential:
    """Linear layers with ReLU between them; with ``norm=batch`` each hidden layer has a BatchNorm before its ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (k, n) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(k, n))
        if i + 2 < len(sizes):
            layers += [nn.BatchNorm1d(n), nn.ReLU()] if recipe.norm == "batch" else [nn.ReLU()]
    return nn.Sequential(*layers)


def convnet(recipe: Recipe, kernel: int, padding: int, channels: tuple[int, int], hidden: int) -> nn.Sequential:
    """Two convolutions, each followed by 2 x 2 maximum and ReLU, and two linear layers, for 28 x 28 images.

    With ``norm=batch`` every layer but the last has a BatchNorm before its ReLU.
    """
    normed = recipe.norm == "batch"

    def norm(n: int, kind: type[nn.Module] = nn.BatchNorm2d) -> list[nn.Module]:
        return [kind(n)] if normed else []

    one, two = channels
    side = functools.reduce(lambda s, _: (s + 2 * padding - kernel + 1) // 2, channels, 28)
    return nn.Sequential(
        *(nn.Conv2d(1, one, kernel, padding=padding), nn.MaxPool2d(2), *norm(one), nn.ReLU()),
        *(nn.Conv2d(one, two, kernel, padding=padding), nn.MaxPool2d(2), *norm(two), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(two * side * side, hidden), *norm(hidden, nn.BatchNorm1d), nn.ReLU()),
        nn.Linear(hidden, 10),
    )
