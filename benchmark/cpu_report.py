"""Writes the tables of docs/notes/benchmarks.md and its plots from cpu_kernels_*.json and call_overhead_*.json.

Run: python benchmark/cpu_report.py              (tables between the markers, plots to docs/images)
     python benchmark/cpu_report.py --print      (only prints the tables)
"""

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from _timing import slug
from readme_table import time_text

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- cpu:begin -->", "<!-- cpu:end -->"
LATENCY_SHAPE = (2560, 2560)
FP32, BF16 = "nn.Linear fp32", "nn.Linear bf16"
# Name, colour, marker. A colour for each of ours, and one for each family of peers.
PEERS = [
    (FP32, "#222222", "o"),
    (BF16, "#222222", "^"),
    ("torch dynamic int8", "#cc79a7", "o"),
    ("torch._int_mm, codes only", "#cc79a7", "^"),
    ("onnxruntime dynamic int8", "#9c7a2f", "o"),
    ("onnxruntime 4 bit", "#9c7a2f", "^"),
    ("onnxruntime 2 bit", "#9c7a2f", "s"),
]
OURS = [
    ("w2a8", "#d55e00", "D"),
    ("w2a16", "#d55e00", "v"),
    ("w2a24", "#d55e00", "s"),
    ("packed bf16 x", "#009e73", "D"),
    ("packed fp32 x", "#0072b2", "D"),
]
ROOFS = {
    "vpdpbusd": "vpdpbusd (int8)",
    "vpmaddubsw": "vpmaddubsw (int8, AVX2)",
    "vdpbf16ps": "vdpbf16ps (bf16)",
    "smmla": "smmla (int8)",
    "sdot": "sdot (int8)",
    "fma_fp32": "FMA (fp32)",
}


class Record:
    """A result file."""

    def __init__(self, path: Path) -> None:
        self.data = json.loads(path.read_text())
        self.machine, self.limits = self.data["machine"], self.data["limits"]
        every = self.data["rows"]
        self.rows = {(r["m"], r["k"], r["n"], r["mode"], r["name"]): r for r in every if "median_s" in r}
        self.missing = {r["name"]: r["missing"] for r in every if "missing" in r}
        self.names = list(dict.fromkeys(key[4] for key in self.rows))
        self.shapes = list(dict.fromkeys(key[1:3] for key in self.rows))
        self.batches = sorted({key[0] for key in self.rows})

    def chosen(self, start: str) -> str | None:
        """Our kernel that runs by itself, which is the first of its kind in the file."""
        return next((name for name in self.names if name.startswith(start + " ")), None)

    def ours(self) -> list[str]:
        return [name for start, _, _ in OURS if (name := self.chosen(start))]

    def peers(self) -> list[str]:
        return [name for name, _, _ in PEERS if name in self.names]

    def peak(self, start: str) -> float | None:
        return max((v for name, v in self.limits["peak_gops"].items() if name.startswith(start)), default=None)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def limits_text(record: Record) -> str:
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in record.limits["peak_gops"].items())
    reads = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in record.limits["read_gbps"].items())
    return f"Limits, all threads together. Gop/s: {peaks}. GB/s read: {reads}."


def kernel_table(record: Record) -> str:
    """Gop/s of every kernel of ours, and its share of the peak of its instruction, hot."""
    names = [n for n in record.names if n.startswith(tuple(s for s, _, _ in OURS)) and "one thread" not in n]
    rows = []
    for name in names:
        for k, n in record.shapes:
            cells = []
            for m in record.batches:
                row = record.rows.get((m, k, n, "hot", name))
                share = f" ({100 * row['of_peak']:.0f} %)" if row and row["of_peak"] else ""
                cells.append(f"{row['gops']:.0f}{share}" if row else "-")
            rows.append([name, f"{k} → {n}", *cells])
    return _table(["kernel", "in → out", *(f"batch {m}" for m in record.batches)], rows)


def peer_table(record: Record, mode: str, batches: list[int]) -> str:
    """Latencies; the fastest of a row is bold."""
    names = record.ours() + record.peers()
    rows = []
    for m in batches:
        for k, n in record.shapes:
            found = {name: record.rows[m, k, n, mode, name] for name in names if (m, k, n, mode, name) in record.rows}
            if not found:
                continue
            best = min(row["median_s"] for row in found.values())
            cells = []
            for name in names:
                if name not in found:
                    cells.append("-")
                    continue
                text = time_text(found[name]["median_s"])
                if mode == "cold" and m == 1:
                    text += f", {found[name]['weight_gbps']:.0f} GB/s"
                cells.append(f"**{text}**" if found[name]["median_s"] == best else text)
            rows.append([f"{m}, {k} → {n}", *cells])
    return _table(["batch, in → out", *names], rows) if rows else ""


def goal_table(goals: list[dict[str, Any]]) -> str:
    rows = [
        ["yes" if goal["pass"] else "**no**", goal["what"], goal["wanted"], f"{goal['value']:.2f}"] for goal in goals
    ]
    return _table(["met", "goal", "wanted", "measured"], rows) if rows else ""


def image_name(kind: str, record: Record) -> str:
    return f"cpu_{kind}_{slug(record.machine['name'])}_{record.machine['threads']}t.png"


def section(record: Record) -> str:
    machine = record.machine
    parts = [
        f"## {machine['name']}, {machine['threads']} thread(s)",
        limits_text(record),
    ]
    if has_plots(record):
        parts += [
            f"![Latency of one layer against the batch](../images/{image_name('latency', record)})",
            f"![Gop/s against operations for each byte of weights](../images/{image_name('roofline', record)})",
        ]
    parts += [
        "### What is wanted, beside the worst case measured",
        goal_table(record.data["wanted"]),
        "### Our kernels, weights hot: Gop/s and share of the peak of their instruction",
        kernel_table(record),
        "### Latency, weights hot",
        peer_table(record, "hot", record.batches),
        "### Latency, weights cold",
        peer_table(record, "cold", record.batches),
    ]
    for name, why in record.missing.items():
        parts.append(f"{name}, where it has no figure: {why}.")
    parts.append(
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']} ({machine['torch_cpu_capability']}), "
        f"onnxruntime {machine['onnxruntime']}, bittorch {machine['bittorch']}, "
        f"{machine['busy_cpus_before']} CPUs busy with other work just before."
    )
    return "\n\n".join(part for part in parts if part)


def calls_section(data: dict[str, Any]) -> str:
    """What a call costs besides its kernel, and what a busy core costs it."""
    machine = data["machine"]
    found = {(row["name"], row["size"], row["grad"]): f"{row['median_s'] * 1e6:.1f} µs" for row in data["small"]}
    cases = list(dict.fromkeys((size, grad) for _, size, grad in found))
    names = dict.fromkeys(name for name, _, _ in found)
    small = [[name, *(found[name, size, grad] for size, grad in cases)] for name in names]
    titles = [f"1, {size} → {size}, {'with' if grad else 'no'} gradients" for size, grad in cases]
    busy = [
        [f"{row['m']}, {row['k']} → {row['n']}", row["name"]]
        + [time_text(row[state][key]) for state in ("idle", "one core busy") for key in ("median_s", "mean_s", "p99_s")]
        for row in data["busy_core"]
    ]
    figures = [f"{state}: {what}" for state in ("idle", "one core busy") for what in ("median", "mean", "p99")]
    parts = [
        f"## Calls: {machine['name']}, {machine['threads']} thread(s)",
        goal_table(data["wanted"]),
        _table(["call", *titles], small),
        _table(["batch, in → out", "layer", *figures], busy),
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']}, bittorch {machine['bittorch']}, "
        f"{machine['busy_cpus_before']} CPUs busy with other work just before.",
    ]
    return "\n\n".join(parts)


def has_plots(record: Record) -> bool:
    return record.machine["threads"] == 1 and LATENCY_SHAPE in record.shapes


def _plain_numbers(axis: Any, values: list[float]) -> None:
    axis.set_major_locator(importlib.import_module("matplotlib.ticker").FixedLocator(values))
    axis.set_major_formatter(importlib.import_module("matplotlib.ticker").FuncFormatter(lambda v, _: f"{v:,g}"))
    axis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())


def _styles(record: Record) -> list[tuple[str, str, str, bool]]:
    """Name, colour, marker and whether it is ours."""
    mine = [(name, colour, marker, True) for start, colour, marker in OURS if (name := record.chosen(start))]
    return mine + [(name, colour, marker, False) for name, colour, marker in PEERS if name in record.names]


def plot_latency(record: Record, plt: Any, path: Path) -> None:
    k, n = LATENCY_SHAPE
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, colour, marker, mine in _styles(record):
        points = [
            (m, record.rows[m, k, n, "hot", name]) for m in record.batches if (m, k, n, "hot", name) in record.rows
        ]
        axes.plot(
            [m for m, _ in points],
            [row["median_s"] * 1e6 for _, row in points],
            color=colour,
            marker=marker,
            markersize=6 if mine else 5,
            linewidth=2.2 if mine else 1.1,
            linestyle="-" if mine else "--",
            label=name,
            zorder=3 if mine else 2,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _plain_numbers(axes.xaxis, [float(m) for m in record.batches])
    low, high = axes.get_ylim()
    _plain_numbers(axes.yaxis, [v for e in range(1, 7) for v in (10.0**e, 3 * 10.0**e) if low <= v <= high])
    axes.set_xlabel("batch (rows of x)")
    axes.set_ylabel("µs a call")
    axes.set_title(f"One layer {k} → {n}, weights hot, one thread\n{record.machine['name']}", fontsize=11, loc="left")
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_roofline(record: Record, plt: Any, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    left, right = 0.35, 8192.0
    peaks = [(text, value) for start, text in ROOFS.items() if (value := record.peak(start))]
    top = max(value for _, value in peaks)
    for text, value in peaks:
        axes.plot([left, right], [value, value], color="#999999", linewidth=1.1, zorder=1)
        axes.text(right, value * 1.03, f"{text}  {value:.0f}", color="#555555", fontsize=8, va="bottom", ha="right")
    reads = record.limits["read_gbps"]
    for level, text, style in (("l3", "L3", ":"), ("cold", "memory", "-")):
        gbps = reads[level]
        axes.plot([left, top / gbps], [left * gbps, top], color="#999999", linewidth=1.1, linestyle=style, zorder=1)
        axes.text(
            1.5 * left,
            1.75 * left * gbps,
            f"{text}  {gbps:.0f} GB/s",
            rotation=math.degrees(math.atan(gbps * 1.75 / 1.5)),  # parallel to the line on logarithmic axes
            transform_rotates_text=True,
            rotation_mode="anchor",
            color="#555555",
            fontsize=8,
        )
    k, n = LATENCY_SHAPE
    for name, colour, marker, mine in _styles(record):
        if not mine and name not in (FP32, BF16, "torch dynamic int8", "onnxruntime 2 bit"):
            continue
        for mode in ("hot", "cold"):
            found = [row for m in record.batches if (row := record.rows.get((m, k, n, mode, name)))]
            axes.plot(
                [2.0 * row["m"] * k * n / row["weight_bytes"] for row in found],
                [row["gops"] for row in found],
                color=colour,
                marker=marker,
                markersize=6.5 if mine else 5,
                markerfacecolor=colour if mode == "hot" else "white",
                linewidth=(1.6 if mine else 0.9) if mode == "hot" else 0,
                linestyle="-" if mine else "--",
                label=name if mode == "hot" else None,
                zorder=4 if mine else 3,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(3, top * 1.5)
    _plain_numbers(axes.xaxis, [0.5, 2, 8, 32, 128, 512, 2048])
    _plain_numbers(axes.yaxis, [5, 10, 20, 50, 100, 200, 500])
    axes.set_xlabel("operations for each byte of weights (batch 1, 8, 32, 128, 512)")
    axes.set_ylabel("Gop/s")
    axes.set_title(
        f"{k} → {n}, one thread, against measured limits\nfilled: weights hot, hollow: cold; {record.machine['name']}",
        fontsize=11,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables and plots of docs/notes/benchmarks.md.")
    parser.add_argument("results", type=Path, nargs="*", help="default: benchmark/results/cpu_kernels_*.json")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "notes" / "benchmarks.md", help="default: docs/notes/benchmarks.md"
    )
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the plots")
    parser.add_argument("--print", action="store_true", help="print the tables and leave the files as they are")
    args = parser.parse_args()
    paths = args.results or sorted((ROOT / "benchmark" / "results").glob("cpu_kernels_*.json"))
    if not paths:
        sys.exit("no benchmark/results/cpu_kernels_*.json; run: python benchmark/bench_cpu_kernels.py --threads 1")
    records = [Record(path) for path in paths]
    calls = sorted((ROOT / "benchmark" / "results").glob("call_overhead_*.json"))
    sections = [*map(section, records), *(calls_section(json.loads(path.read_text())) for path in calls)]
    text = "\n\n".join(sections)
    if args.print:
        print(text)
        return
    old = args.page.read_text() if args.page.is_file() else ""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{args.page} must hold the lines {BEGIN} and {END} once, in this order; add them where it goes")
    before, rest = old.split(BEGIN)
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        sys.exit("the plots need matplotlib; run: pip install matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    args.images.mkdir(exist_ok=True)
    for record in filter(has_plots, records):
        for kind, plot in (("latency", plot_latency), ("roofline", plot_roofline)):
            plot(record, plt, args.images / image_name(kind, record))
            print(f"written: {args.images / image_name(kind, record)}")
    args.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(f"written: {args.page}")


if __name__ == "__main__":
    main()
