"""An ordinary model becomes ternary: train it dense, convert it, train on, export it, fold its batch norms.

Run: python examples/convert_model.py            (some seconds on a CPU)
The task is synthetic: images of one of four stripes under noise. Prints what became ternary and what did not, and the
accuracy of each model; exits with 1 if the exported model differs from the trained one, or learned nothing.
"""

import argparse
import sys

import torch
from torch import Tensor, nn

import bittorch
from bittorch.utils import AccuracyDoctor, fold_batch_norm_

CLASSES = 4


class Net(nn.Module):
    """Nothing here knows of ternary weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(self.mlp(x.amax((2, 3))))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a trained model to ternary weights, train on, export.")
    parser.add_argument(
        "--steps", type=int, default=100, help="optimiser steps, dense and ternary alike (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (default: 0)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    return args


def batch(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (samples, 1, 12, 12) of a horizontal, vertical, rising or falling stripe, and which it is."""
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    shift = torch.randint(-3, 4, (samples, 1, 1), generator=generator)
    row, column = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    distances = torch.stack([row - 6 + shift, column - 6 + shift, row - column + shift, row + column - 11 + shift])
    stripes = (distances[labels, torch.arange(samples)].abs() < 1).float()
    return (stripes + 0.5 * torch.randn(stripes.shape, generator=generator))[:, None], labels


def train(model: nn.Module, steps: int, generator: torch.Generator) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        images, labels = batch(32, generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = batch(500, torch.Generator().manual_seed(args.seed + 1))
    model = Net()
    train(model, args.steps, generator)
    print(f"dense                    {accuracy(model, images, labels):.1%}")

    print(bittorch.quantize_(model, skip="head"))
    print(f"ternary, not yet trained {accuracy(model, images, labels):.1%}")
    train(model, args.steps, generator)
    for finding in AccuracyDoctor(model).check():
        print(f"doctor: {finding}")
    print(f"ternary, trained         {accuracy(model, images, labels):.1%}")

    packed = bittorch.export_for_inference(model)
    with torch.inference_mode():
        trained, exported = model(images), packed(images)
    if not torch.equal(trained, exported):
        sys.exit("FAIL: the exported model gives other bits than the trained one; please report this")
    pairs = fold_batch_norm_(packed)
    with torch.inference_mode():
        folded = packed(images)
    print(f"folded: {', '.join(f'{norm} into {layer}' for layer, norm in pairs)}")
    distance = float((folded - exported).norm() / exported.norm())
    print(f"exported and folded      {accuracy(packed, images, labels):.1%}, outputs {distance:.0e} off those before")
    if accuracy(packed, images, labels) < 0.5:
        sys.exit("FAIL: little was learned; try more --steps or another --seed")
    print("OK: trained and exported outputs are equal bit for bit")


if __name__ == "__main__":
    main()
