"""Small nets without BatchNorm at a constant rate, all layers ternary: what a layer's gain does, nothing takes back.

Plain ReLU nets on MNIST's digits of 14 x 14 (mnist.npz, see data.py), a transformer that sorts, and a regression; the
last two make their data.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
import torch
from char_lm import Block
from data import HELD_OUT, Split, mnist
from recipe import Recipe
from task import Task, mlp
from torch import Tensor, nn

CONSTANT = {"lr": 1e-3, "lr_fp32": 1e-3, "lr_end": 1.0, "warmup": 0.0}
NUMBERS, LONG = 32, 8  # what is sorted: so many numbers below 32


def small_mnist(folder: Path) -> list[np.ndarray]:
    """Digits of 14 x 14: means of four pixels."""
    x, y, x_test, y_test = mnist(folder)
    x, x_test = (images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) for images in (x, x_test))
    return [x, y, x_test, y_test]


def parts(x: Tensor, y: Tensor, final: bool, size: int) -> Split:
    """The last sixth is the test data, the sixth before it is held out."""
    n = len(x) // HELD_OUT
    cut, end = (len(x) - n, len(x)) if final else (len(x) - 2 * n, len(x) - n)
    return Split(x[: size or cut], y[: size or cut], x[cut:end], y[cut:end])


def friedman(final: bool, recipe: Recipe) -> Split:
    """Friedman 1 in ten variables, five of which tell: y to mean 0 and deviation 1.

    y = 10 sin(pi x1 x2) + 20 (x3 - 0.5)^2 + 10 x4 + 5 x5 + noise of deviation 1. Source: Friedman 1991.
    """
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(12000, 10, generator=noise)
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y + torch.randn(len(x), generator=noise)).unsqueeze(1)
    return parts(x * 12**0.5 - 3**0.5, (y - y.mean()) / y.std(), final, recipe.train_size)


def unsorted(final: bool, recipe: Recipe) -> Split:
    """Rows of eight numbers below 32, and the same rows sorted."""
    x = torch.randint(NUMBERS, (24000, LONG), generator=torch.Generator().manual_seed(0))
    return parts(x, x.sort(1).values, final, recipe.train_size)


class Sorter(nn.Module):
    """A transformer of two blocks, with LayerNorm, that sees all numbers; each place names the number it gets."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(NUMBERS, width), nn.Embedding(LONG, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout=0.0, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUMBERS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.token(ids) + self.position.weight)))


def convnet(recipe: Recipe) -> nn.Sequential:
    """Three convolutions of 3 x 3, maxima of 2 x 2 after the first two, and two linear layers, for 14 x 14 images."""
    layers: list[nn.Module] = []
    for i, (k, n) in enumerate(itertools.pairwise((1, 16, 32, 32))):
        layers += [nn.Conv2d(k, n, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if i < 2 else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 10))


def plain(layers: int) -> Task:
    return Task(
        name=f"plain_mlp{layers}",
        title=f"plain MLP of {layers} layers, 5 000 digits",
        build=functools.partial(mlp, sizes=(196, *[128] * (layers - 1), 10)),
        recipe=Recipe(epochs=12, train_size=5000, batch=64, **CONSTANT),
        read=small_mnist,
    )


MLP2, MLP4, MLP8 = (plain(layers) for layers in (2, 4, 8))
CNN = Task(
    name="plain_cnn",
    title="CNN of 5 layers, 2 000 digits",
    build=convnet,
    recipe=Recipe(epochs=9, train_size=2000, batch=64, **CONSTANT),
    read=small_mnist,
)
SORT = Task(
    name="sort",
    title="transformer of 2 blocks, sorts 8 numbers (embeddings and norms FP32)",
    build=lambda recipe: Sorter(),
    recipe=Recipe(steps=700, batch=32, **CONSTANT),
    make=unsorted,
)
FRIEDMAN = Task(
    name="friedman",
    title="regression, MLP 10-128-128-1 (R² x 100)",
    build=functools.partial(mlp, sizes=(10, 128, 128, 1)),
    recipe=Recipe(steps=1500, batch=64, **CONSTANT),
    make=friedman,
    regression=True,
)
