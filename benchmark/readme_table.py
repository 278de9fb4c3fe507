"""Writes the tables of layers against nn.Linear from benchmark/results: inference and training, wins and losses alike.

The README gets five rows of one thread, docs/notes/benchmarks.md all.

Run: python benchmark/readme_table.py            (rewrites what stands between the markers in the two pages)
     python benchmark/readme_table.py --print    (only prints the tables)
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
BASE = "nn.Linear fp32"
PHASE = "forward+backward"
INFERENCE = {  # columns, each the first row whose name begins so: the kernel that the library chooses
    "nn.Linear bf16": "bf16",
    "torch dynamic int8": "torch int8",
    "packed fp32 x": "packed, fp32 x",
    "packed bf16 x": "packed, bf16 x",
    "w2a8": "packed, int8 x",
}
INFERENCE_BATCHES = (1, 32)
README = ((1, 2560, 2560), (1, 4096, 4096), (1, 8192, 8192), (32, 2560, 2560), (32, 4096, 4096))  # batch, in, out
TRAINING = {
    "nn.Linear bf16": "bf16",
    "TernaryLinear fp32": "TernaryLinear fp32",
    "TernaryLinear bf16": "TernaryLinear bf16",
    "TernaryLinear fp32 A8": "TernaryLinear fp32, int8 x",
    "TernaryLinear fp32 A24": "TernaryLinear fp32, 24-bit x",
}


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def cell(row: dict[str, Any] | None) -> str:
    """Time and speed over nn.Linear fp32; what is faster than it is bold."""
    if row is None:
        return "-"
    ratio = row["speedup_over_fp32"]
    text = f"{time_text(row['median_s'])} ({ratio:.2f}x)"
    return f"**{text}**" if ratio > 1 else text


def training_table(record: dict[str, Any]) -> str:
    rows = {(row["m"], row["k"], row["n"], row["name"]): row for row in record["rows"] if row["phase"] == PHASE}
    names = {name: title for name, title in TRAINING.items() if any(key[3] == name for key in rows)}
    lines = heading(record, names.values())
    for m, k, n in dict.fromkeys(key[:3] for key in rows):
        cells = [time_text(rows[m, k, n, BASE]["median_s"]), *(cell(rows.get((m, k, n, name))) for name in names)]
        lines.append(f"| {m}, {k} → {n} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", origin(record)])


def inference_table(record: dict[str, Any], shapes: Sequence[tuple[int, int, int]] = ()) -> str:
    """Of the record of all CPU kernels, whose other tables docs/notes/benchmarks.md has: one record for both pages."""
    hot = [row for row in record["rows"] if row["mode"] == "hot" and row["m"] in INFERENCE_BATCHES]
    found = sorted(dict.fromkeys((row["m"], row["k"], row["n"]) for row in hot))
    lines = heading(record, [*INFERENCE.values(), "bytes, fp32 / packed"])
    for m, k, n in shapes or found:
        rows = [row for row in hot if (row["m"], row["k"], row["n"]) == (m, k, n)]
        base = next(row["median_s"] for row in rows if row["name"] == BASE)
        cells = [time_text(base)]
        for begin in INFERENCE:
            seconds = next((row["median_s"] for row in rows if row["name"].startswith(begin)), None)
            cells.append(cell(seconds and {"median_s": seconds, "speedup_over_fp32": base / seconds}))
        packed = next(row["weight_bytes"] for row in rows if row["name"].startswith("w2a8"))
        lines.append(f"| {m}, {k} → {n} | " + " | ".join([*cells, f"{4 * k * n / packed:.1f}"]) + " |")
    return "\n".join([*lines, "", origin(record)])


def heading(record: dict[str, Any], titles: Iterable[str]) -> list[str]:
    machine, columns = record["machine"], [BASE, *titles]
    return [
        f"**{machine['name']}, {machine['threads']} thread(s)**",
        "",
        "| batch, in → out | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]


def origin(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']} ({machine['torch_cpu_capability']}), "
        f"bittorch {machine['bittorch']}, {machine['busy_cpus_before']} CPUs busy with other work just before."
    )


def records(benchmark: str) -> list[dict[str, Any]]:
    paths = sorted((ROOT / "benchmark" / "results").glob(f"{benchmark}_*.json"))
    if not paths:
        sys.exit(f"no benchmark/results/{benchmark}_*.json; run: python benchmark/bench_{benchmark}.py")
    return [json.loads(path.read_text()) for path in paths]


CAPTION = (
    "Median latency of one product and, in brackets, its speed over `nn.Linear` fp32 in the same run "
    "(bold: faster, below 1: slower). Weights hot, calls interleaved, kernels called as compiled code calls them; "
    "bytes are those of the weight, scales included."
)


def everything() -> str:
    training = "A training step, forward and backward, quantisation included:"
    inference = map(inference_table, records("cpu_kernels"))
    return "\n\n".join([CAPTION, *inference, training, *map(training_table, records("ternary_vs_linear"))])


def in_short() -> str:
    """The rows of the README, of the first record of one thread."""
    record = next(record for record in records("cpu_kernels") if record["machine"]["threads"] == 1)
    return "\n\n".join([CAPTION, inference_table(record, README)])


def rewrite(page: Path, text: str) -> None:
    old = page.read_text() if page.is_file() else ""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{page} must hold the lines {BEGIN} and {END} once, in this order; add them where it goes")
    before, rest = old.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(f"written: {page}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the tables of layers in README.md and docs/notes/benchmarks.md."
    )
    parser.add_argument("--print", action="store_true", help="print all tables and leave the files as they are")
    args = parser.parse_args()
    if args.print:
        print(everything())
        return
    rewrite(ROOT / "README.md", in_short())
    rewrite(ROOT / "docs" / "notes" / "benchmarks.md", everything())


if __name__ == "__main__":
    main()
