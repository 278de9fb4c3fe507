"""Writes the benchmark tables of README.md from benchmark/results: inference and training, wins and losses alike.

Run: python benchmark/readme_table.py            (rewrites what stands between the markers in README.md)
     python benchmark/readme_table.py --print    (only prints the table)
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


def tables(benchmark: str, columns: dict[str, str]) -> list[str]:
    paths = sorted((ROOT / "benchmark" / "results").glob(f"{benchmark}_*.json"))
    if not paths:
        sys.exit(f"no benchmark/results/{benchmark}_*.json; run: python benchmark/bench_{benchmark}.py")
    return [table(json.loads(path.read_text()), columns) for path in paths]


def everything() -> str:
    inference = (
        "Median latency of one layer and, in brackets, its speed over `nn.Linear` fp32 in the same run "
        "(bold: faster, below 1: slower). Weights hot, calls interleaved; bytes are those of all parameters, "
        "scales included."
    )
    training = "A training step, forward and backward, quantisation included:"
    return "\n\n".join(
        [inference, *tables("packed_inference", INFERENCE), training, *tables("ternary_vs_linear", TRAINING)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the benchmark table of the README.")
    parser.add_argument("readme", type=Path, nargs="?", default=ROOT / "README.md", help="default: README.md")
    parser.add_argument("--print", action="store_true", help="print the table and leave the file as it is")
    args = parser.parse_args()
    text = everything()
    if args.print:
        print(text)
        return
    old = args.readme.read_text() if args.readme.is_file() else ""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        sys.exit(f"{args.readme} must hold the lines {BEGIN} and {END} once, in this order; add them where it goes")
    before, rest = old.split(BEGIN)
    args.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(f"written: {args.readme}")


if __name__ == "__main__":
    main()
