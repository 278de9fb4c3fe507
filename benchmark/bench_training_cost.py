"""What a training step of one linear layer costs, forward and backward: TernaryLinear, nn.Linear, and others' ways.

Run: python benchmark/bench_training_cost.py --threads 1
Writes JSON to benchmark/results and the tables of docs/notes/benchmarks.md; --report writes the tables from the JSON
alone.
Peers: fake quantisation as it is usually written, eager (absmean, round, straight through), and torchao's
bitnet_training (pip install torchao; without it its row says "not installed"). The optimiser is left out: it is the
same for all. Gradients of input, weight and bias are made. A ratio is the median over the rounds of the time over that
of nn.Linear in the same round. Saved bytes are what autograd keeps from forward to backward, by its own hooks.
"""

import argparse
import importlib
import importlib.metadata
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _timing as timing
import torch
from bench_ternary_vs_linear import Step
from readme_table import time_text
from torch import Tensor, nn

from bittorch import TernaryLinear, TernaryQuantConfig

BASE = "nn.Linear"
SHAPES = [(1024, 1024), (1024, 4096)]  # in_features, out_features
BATCHES = (32, 128, 512, 2048, 4096)
SMALL_SHAPES = [(128, 128), (128, 512), (512, 128), (784, 256)]  # shown, and no part of the goals
SMALL_BATCHES = (128, 1024)
LIMIT = 1.10  # of the time of nn.Linear
PAGE = timing.ROOT / "docs" / "notes" / "benchmarks.md"
BEGIN, END = "<!-- training:begin -->", "<!-- training:end -->"
Make = Callable[[int, int], nn.Module]


class FakeQuantLinear(nn.Linear):
    """Fake quantisation in plain torch: ``round(w / mean|w|)`` in [-1, 1] times the mean, and int8 activations."""

    def __init__(self, in_features: int, out_features: int, int8: bool) -> None:
        super().__init__(in_features, out_features)
        self.int8 = int8

    def forward(self, input: Tensor) -> Tensor:
        w, x = self.weight, input
        scale = w.detach().abs().mean().clamp(min=1e-5)
        w = w + ((w / scale).round().clamp(-1, 1) * scale - w).detach()
        if self.int8:
            step = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
            x = x + ((x / step).round().clamp(-127, 127) * step - x).detach()
        return nn.functional.linear(x, w, self.bias)


def _ternary(**fields: Any) -> Make:
    return lambda k, n: TernaryLinear(k, n, config=TernaryQuantConfig(**fields))


def _torchao() -> Make | None:
    try:
        quantization = importlib.import_module("torchao.quantization")
        training = importlib.import_module("torchao.prototype.quantized_training")
    except ImportError:
        return None

    def make(k: int, n: int) -> nn.Module:
        linear = nn.Linear(k, n)
        quantization.quantize_(linear, training.bitnet_training())
        return linear

    return make


TORCHAO = "torchao bitnet_training, int8 x"
OURS = {
    "TernaryLinear max": _ternary(),
    "TernaryLinear twn": _ternary(method="twn"),
    "TernaryLinear absmean": _ternary(method="absmean", per_channel=False),
    "TernaryLinear max, int8 x": _ternary(activation_bits=8),
    "TernaryLinear absmean, int8 x": _ternary(method="absmean", per_channel=False, activation_bits=8),
}
PEERS: dict[str, Make | None] = {
    "fake quantisation absmean": lambda k, n: FakeQuantLinear(k, n, int8=False),
    "fake quantisation absmean, int8 x": lambda k, n: FakeQuantLinear(k, n, int8=True),
    TORCHAO: _torchao(),
}
LAYERS: dict[str, Make | None] = {BASE: nn.Linear, **OURS, **PEERS}


class _Saved:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(module: nn.Module, x: Tensor) -> dict[str, int]:
    """Bytes that autograd keeps for the backward pass: all, and those that are neither parameters nor ``x``."""
    saved: list[weakref.ref[_Saved]] = []  # what a part of the graph saved that forward drops again, is gone in the end

    def pack(t: Tensor) -> _Saved:
        held = _Saved(t)
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        y = module(x)
    tensors = [held.tensor for ref in saved if (held := ref())]
    kept = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    del y
    there = {t.data_ptr() for t in (x, *module.parameters())}
    return {
        "saved_bytes": sum(kept.values()),
        "saved_bytes_of_its_own": sum(size for pointer, size in kept.items() if pointer not in there),
    }


def measure(m: int, k: int, n: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    x = torch.randn(m, k)
    modules = {name: make(k, n) for name, make in LAYERS.items() if make}
    steps = {name: Step(module, x.clone().requires_grad_(), backward=True) for name, module in modules.items()}
    times = timing.interleaved(steps, args, least=7, base=BASE)
    rows = []
    print(f"\n({m}, {k} -> {n}){'median':>38}{'x nn.Linear':>13}{'saved bytes':>13}{'its own':>11}")
    for name in LAYERS:
        row: dict[str, Any] = {"m": m, "k": k, "n": n, "name": name}
        if name not in modules:
            rows.append(row | {"missing": "not installed"})
            continue
        row |= times[name] | saved_bytes(modules[name], steps[name].x)
        rows.append(row)
        print(
            f"  {name:36}{timing.time_text(row['median_s']):>14}{row['over_base']:13.2f}"
            f"{row['saved_bytes']:13,}{row['saved_bytes_of_its_own']:11,}"
        )
    return rows


def _problems(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int], dict[str, dict[str, Any]]]:
    """The rows of each problem by name."""
    found: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["m"], row["k"], row["n"]), {})[row["name"]] = row
    return found


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst of each kind beside what is wanted."""
    problems = [found for (_, k, n), found in _problems(rows).items() if (k, n) not in SMALL_SHAPES]

    def worst(name: str, peer: str) -> float:
        return max(found[name]["over_base"] / found[peer]["over_base"] for found in problems)

    def share(found: dict[str, dict[str, Any]], name: str) -> float:
        row = found[name]
        return row["saved_bytes"] / (found[BASE]["saved_bytes"] + row["k"] * row["n"] / 4)

    print()
    result = []
    for name in OURS:
        result.append(timing.verdict(f"{name}: time over nn.Linear", worst(name, BASE), LIMIT, at_least=False))
        tail = ", int8 x" if name.endswith("int8 x") else ""
        peers = [f"fake quantisation absmean{tail}", *([TORCHAO] if tail and LAYERS[TORCHAO] else [])]
        result += [timing.verdict(f"{name}: time over {peer}", worst(name, peer), 1, at_least=False) for peer in peers]
        what = f"{name}: saved bytes over those of nn.Linear and the packed codes"
        result.append(timing.verdict(what, max(share(found, name) for found in problems), 1, at_least=False))
    return result


def _text(row: dict[str, Any], own: bool) -> str:
    if "missing" in row:
        return row["missing"]
    if own:
        return f"{row['saved_bytes_of_its_own'] / 1024:,.0f} KiB"
    text = f"{time_text(row['median_s'])} ({row['over_base']:.2f})"
    return f"**{text}**" if row["over_base"] <= LIMIT and row["name"] in OURS else text


def section(record: dict[str, Any]) -> str:
    """The tables of one result file, in Markdown."""
    machine, rows = record["machine"], record["rows"]
    problems = _problems(rows)
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"## Training: {machine['name']}, {machine['threads']} thread(s)", "", "| met | goal | wanted | worst |"]
    lines += ["|---" * 4 + "|"]
    for goal in record["verdicts"]:
        met = "yes" if goal["pass"] else "**no**"
        lines.append(f"| {met} | {goal['what']} | {goal['wanted']} | {goal['value']:.2f} |")
    for title, own in (
        ("Forward and backward, and over nn.Linear in the same rounds", False),
        ("Saved, besides parameters and x", True),
    ):
        lines += ["", f"{title}:", "", "| batch, in → out | " + " | ".join(names) + " |"]
        lines += ["|---" * (len(names) + 1) + "|"]
        for (m, k, n), found in problems.items():
            cells = [_text(found[name], own) for name in names]
            lines.append(f"| {m}, {k} → {n} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']}, torchao {machine['torchao']}, bittorch "
        f"{machine['bittorch']}, load {machine['load_before']}, {machine['busy_cpus_before']} CPUs busy with other "
        f"work just before.",
    ]
    return "\n".join(lines)


def write_page(page: Path) -> None:
    """Writes the tables of all result files between the markers of the page."""
    paths = sorted(timing.RESULTS.glob("training_cost_*.json"))
    if not paths:
        sys.exit("no benchmark/results/training_cost_*.json; run: python benchmark/bench_training_cost.py --threads 1")
    old = page.read_text() if page.is_file() else ""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{page} must hold the lines {BEGIN} and {END} once, in this order; add them where it goes")
    text = "\n\n".join(section(json.loads(path.read_text())) for path in paths)
    page.write_text(f"{old.split(BEGIN)[0]}{BEGIN}\n{text}\n{END}{old.split(END)[1]}")
    print(f"written: {page.relative_to(timing.ROOT) if page.is_relative_to(timing.ROOT) else page}")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", action="store_true", help="measure nothing, write the tables from the result files")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/notes/benchmarks.md")


def main() -> None:
    args = timing.parse_args(__doc__, _options)
    if args.report:
        write_page(args.page)
        return
    if args.device != "cpu":
        sys.exit("this compares layers on a CPU; bench_ternary_vs_linear.py takes --device cuda")
    machine = timing.machine(args)
    machine["torchao"] = importlib.metadata.version("torchao") if LAYERS[TORCHAO] else "not installed"
    print(timing.header(machine))
    torch.manual_seed(0)
    problems = [(m, k, n) for k, n in SHAPES for m in BATCHES]
    problems += [(m, k, n) for k, n in SMALL_SHAPES for m in SMALL_BATCHES]
    if args.quick:
        problems = [(8, 256, 256)]
    rows = [row for m, k, n in problems for row in measure(m, k, n, args)]
    timing.save(args, "training_cost", {"machine": machine, "rows": rows, "verdicts": verdicts(rows)})
    if not args.quick and not args.json:
        write_page(args.page)


if __name__ == "__main__":
    main()
