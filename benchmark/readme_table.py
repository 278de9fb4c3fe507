"""Writes the tables of layers against nn.Linear from benchmark/results: inference and training, wins and losses alike.

The README gets those of one thread, docs/benchmarks.md all.

Run: python benchmark/readme_table.py            (rewrites what stands between the markers in the two pages)
     python benchmark/readme_table.py --print    (only prints the tables)
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
BASE, PACKED = "nn.Linear fp32", "packed W1.58A16 fp32"
PHASES = (None, "forward+backward")  # of a row of inference, of a training step
INFERENCE = {
    "nn.Linear bf16": "bf16",
    "torch dynamic int8": "torch int8",
    "packed W1.58A16 fp32": "packed, fp32 x",
    "packed W1.58A16 bf16": "packed, bf16 x",
    "packed W1.58A8": "packed, int8 x",
}
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


def table(record: dict[str, Any], columns: dict[str, str]) -> str:
    machine = record["machine"]
    rows = {(row["m"], row["k"], row["n"], row["name"]): row for row in record["rows"] if row.get("phase") in PHASES}
    names = {name: title for name, title in columns.items() if any(key[3] == name for key in rows)}
    sizes = any(key[3] == PACKED for key in rows)
    titles = [BASE, *names.values(), *(["bytes, fp32 / packed"] if sizes else [])]
    lines = [
        f"**{machine['name']}, {machine['threads']} thread(s)**",
        "",
        "| batch, in → out | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for m, k, n in dict.fromkeys(key[:3] for key in rows):
        base = rows[m, k, n, BASE]
        cells = [time_text(base["median_s"]), *(cell(rows.get((m, k, n, name))) for name in names)]
        if sizes:
            cells.append(f"{base['parameter_bytes'] / rows[m, k, n, PACKED]['parameter_bytes']:.1f}")
        lines.append(f"| {m}, {k} → {n} | " + " | ".join(cells) + " |")
    busy = machine["busy_cpus_before"]
    lines += [
        "",
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']} ({machine['torch_cpu_capability']}), "
        f"bittorch {machine['bittorch']}, {busy} CPUs busy with other work just before.",
    ]
    return "\n".join(lines)


def tables(benchmark: str, columns: dict[str, str], one_thread: bool) -> list[str]:
    paths = sorted((ROOT / "benchmark" / "results").glob(f"{benchmark}_*.json"))
    if not paths:
        sys.exit(f"no benchmark/results/{benchmark}_*.json; run: python benchmark/bench_{benchmark}.py")
    records = [json.loads(path.read_text()) for path in paths]
    short = [record for record in records if record["machine"]["threads"] == 1]
    return [table(record, columns) for record in (one_thread and short) or records]


def everything(one_thread: bool) -> str:
    inference = (
        "Median latency of one layer and, in brackets, its speed over `nn.Linear` fp32 in the same run "
        "(bold: faster, below 1: slower). Weights hot, calls interleaved; bytes are those of all parameters, "
        "scales included."
    )
    training = "A training step, forward and backward, quantisation included:"
    return "\n\n".join(
        [
            inference,
            *tables("packed_inference", INFERENCE, one_thread),
            training,
            *tables("ternary_vs_linear", TRAINING, one_thread),
        ]
    )


def rewrite(page: Path, text: str) -> None:
    old = page.read_text() if page.is_file() else ""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{page} must hold the lines {BEGIN} and {END} once, in this order; add them where it goes")
    before, rest = old.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(f"written: {page}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of layers in the README and in docs/benchmarks.md.")
    parser.add_argument("--print", action="store_true", help="print all tables and leave the files as they are")
    args = parser.parse_args()
    if args.print:
        print(everything(one_thread=False))
        return
    rewrite(ROOT / "README.md", everything(one_thread=True))
    rewrite(ROOT / "docs" / "benchmarks.md", everything(one_thread=False))


if __name__ == "__main__":
    main()
