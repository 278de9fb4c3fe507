"""CIFAR-10, ResNet-20, all 22 layers ternary. Data: cifar10_jpeg.npz, a JPEG copy (see data.py). Wants a GPU."""

import itertools

from data import cifar
from recipe import Recipe
from task import Task
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, k: int, n: int, stride: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(k, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n)
        self.two, self.norm2 = nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n)
        changes = stride != 1 or k != n
        self.shortcut = nn.Sequential(nn.Conv2d(k, n, 1, stride, bias=False), nn.BatchNorm2d(n)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(F.relu(self.norm1(self.one(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def build(recipe: Recipe, depth: int = 3) -> nn.Module:
    widths = (16, 16, 32, 64)
    blocks = [
        Residual(n if i else k, n, 2 if stage and not i else 1)
        for stage, (k, n) in enumerate(itertools.pairwise(widths))
        for i in range(depth)
    ]
    stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


TASK = Task(
    name="cifar_resnet20",
    title="CIFAR-10 (JPEG copy) ResNet-20",
    build=build,
    recipe=Recipe(epochs=100, batch=128, lr=2e-3, lr_fp32=1e-3, weight_decay=1e-2, norm="batch"),
    read=cifar,
    augment=True,
)
