"""XOR with two ternary layers: train, export to 2-bit weights, check that both give the same bits.

Run: python examples/xor_mlp.py            (a second or two on a CPU; --cuda trains on a GPU)
Prints the learned truth table; exits with 1 if XOR was not learned or the packed model differs.
"""

import argparse
import sys
from collections.abc import Iterable

import torch

import bittorch
from bittorch.nn import TernaryLinear

INPUTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn XOR with ternary weights.")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps (default: 500)")
    parser.add_argument("--hidden", type=int, default=16, help="hidden units (default: 16)")
    parser.add_argument("--lr", type=float, default=3e-2, help="learning rate of Adam (default: 0.03)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights (default: 0)")
    parser.add_argument(
        "--cuda", action="store_true", help="train on the GPU; on the CPU, with a line that says so, without"
    )
    args = parser.parse_args()
    if args.steps < 1 or args.hidden < 1:
        parser.error("--steps and --hidden must be at least 1")
    return args


def progress(steps: Iterable[int], what: str) -> Iterable[int]:
    try:
        from tqdm import tqdm
    except ImportError:
        sys.exit("the progress bar needs tqdm; run: pip install tqdm")
    return tqdm(steps, desc=what)


def chosen_device(cuda: bool) -> str:
    if cuda and not torch.cuda.is_available():
        print("--cuda: PyTorch sees no CUDA device here; this runs on the CPU", file=sys.stderr)
    return "cuda" if cuda and torch.cuda.is_available() else "cpu"


def train(model: torch.nn.Module, inputs: torch.Tensor, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    targets = TARGETS.to(inputs.device)
    for _ in progress(range(steps), "training"):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    model = torch.nn.Sequential(TernaryLinear(2, args.hidden), torch.nn.Tanh(), TernaryLinear(args.hidden, 1))
    inputs = INPUTS.to(chosen_device(args.cuda))
    train(model.to(inputs.device), inputs, args.steps, args.lr)

    packed = bittorch.export_for_inference(model)
    with torch.inference_mode():
        trained, exported = model.eval()(inputs).cpu(), packed(inputs).cpu()
    print("a b | a xor b | probability of 1")
    for (a, b), target, logit in zip(INPUTS.int().tolist(), TARGETS.int(), exported, strict=True):
        print(f"{a} {b} | {target.item():7d} | {logit.sigmoid().item():.4f}")
    print(f"codes of the first layer (rows are hidden units): {packed[0].weight_packed.flatten().tolist()} as bytes")

    if not torch.equal(trained, exported):
        sys.exit("FAIL: the exported model gives other bits than the trained one; please report this")
    if not torch.equal((exported > 0).float(), TARGETS):
        sys.exit("FAIL: XOR was not learned; try more --steps, more --hidden or another --seed")
    print("OK: XOR learned; trained and exported outputs are equal bit for bit")


if __name__ == "__main__":
    main()
