"""Deployment end to end: train briefly, export, save, load in a fresh process, compare bit for bit.

Run: python examples/inference_demo.py                     (a few seconds on a CPU)
     python examples/inference_demo.py --load FILE         (only time a checkpoint that this script wrote)
The task is synthetic: a ternary net learns the classes of a random FP32 net, so nothing is downloaded. A second Python
process builds an untrained net, loads the checkpoint and must give the same bits (exit code 1 otherwise).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bittorch

INPUTS, HIDDEN, CLASSES = 512, 1024, 10


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, export, save, load in a fresh process, compare bit for bit.")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of task and weights (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), help="folder of the files (default: demo_output)"
    )
    parser.add_argument("--load", type=Path, help="load this checkpoint instead of training")
    parser.add_argument("--expect", type=Path, help="with --load: file of inputs and outputs to compare with")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args()
    if min(args.steps, args.threads) < 1:
        parser.error("--steps and --threads must be at least 1")
    if args.expect and not args.load:
        parser.error("--expect goes with --load")
    torch.set_num_threads(args.threads)
    return args


def progress(steps: Iterable, what: str) -> Iterable:
    try:
        from tqdm import tqdm
    except ImportError:
        sys.exit("the progress bar needs tqdm; run: pip install tqdm")
    return tqdm(steps, desc=what)


def mlp(linear: type[nn.Linear]) -> nn.Sequential:
    return nn.Sequential(linear(INPUTS, HIDDEN), nn.ReLU(), linear(HIDDEN, HIDDEN), nn.ReLU(), linear(HIDDEN, CLASSES))


def train(model: nn.Module, steps: int) -> None:
    teacher = nn.Linear(INPUTS, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in progress(range(steps), "training"):
        x = torch.randn(64, INPUTS)
        loss = nn.functional.cross_entropy(model(x), teacher(x).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def parameter_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


@torch.inference_mode()
def print_sizes_and_latency(models: dict[str, nn.Module]) -> None:
    """Medians of interleaved calls, so that noise meets all models alike."""
    print(f"{'':18}{'parameter bytes':>16}{'batch 1, us':>13}{'batch 64, us':>14}")
    times: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in models for batch in (1, 64)}
    for (name, batch), values in list(times.items()) * 60:
        x = torch.zeros(batch, INPUTS)
        models[name](x)  # warm
        start = time.perf_counter()
        models[name](x)
        values.append(1e6 * (time.perf_counter() - start))
    for name, model in models.items():
        one, many = median(times[name, 1]), median(times[name, 64])
        print(f"{name:18}{parameter_bytes(model):16,}{one:13.1f}{many:14.1f}")
    print(f"Latency: medians of interleaved calls, {torch.get_num_threads()} thread(s).")


def load(checkpoint: Path) -> nn.Module:
    try:
        return bittorch.load_ternary_inference_checkpoint(mlp(nn.Linear), checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"--load: {error}; run this script without --load to write a checkpoint that fits")


def check(expect: Path, model: nn.Module) -> None:
    pair: dict[str, Tensor] = load_file(expect)
    with torch.inference_mode():
        y = model(pair["x"])
    if not torch.equal(y, pair["y"]):
        sys.exit(f"FAIL: {(y != pair['y']).sum().item()} of {y.numel()} outputs differ; please report this")
    print(f"OK: all {y.numel()} outputs of the loaded model are equal bit for bit")


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    if args.load:
        model = load(args.load)
        if args.expect:
            check(args.expect, model)
        else:
            print_sizes_and_latency({"nn.Linear fp32": mlp(nn.Linear).eval(), "loaded, packed": model})
        return

    model = mlp(bittorch.nn.TernaryLinear)
    train(model, args.steps)
    packed = bittorch.export_for_inference(model)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, expect = args.out / "inference_demo.safetensors", args.out / "inference_demo_expected.safetensors"
    bittorch.save_ternary_inference_checkpoint(packed, checkpoint)
    x = torch.randn(256, INPUTS)
    with torch.inference_mode():
        save_file({"x": x, "y": model.eval()(x)}, expect)
    print(f"{checkpoint}: {checkpoint.stat().st_size:,} bytes; now a fresh process loads it", flush=True)
    fresh = [
        sys.executable,
        __file__,
        "--load",
        str(checkpoint),
        "--expect",
        str(expect),
        "--threads",
        str(args.threads),
    ]
    if subprocess.run(fresh, check=False).returncode:
        sys.exit("FAIL: the fresh process did not reproduce the trained model; see above")
    print_sizes_and_latency({"nn.Linear fp32": mlp(nn.Linear).eval(), "ternary, training": model, "packed": packed})


if __name__ == "__main__":
    main()
