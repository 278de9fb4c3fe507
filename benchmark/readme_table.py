"""Writes the benchmark table of README.md from benchmark/results/packed_inference_*.json: wins and losses alike.

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
BASE = "nn.Linear fp32"
COLUMNS = {
    "nn.Linear bf16": "bf16",
    "torch dynamic int8": "torch int8",
    "packed W1.58A16 fp32": "packed, fp32 x",
    "packed W1.58A16 bf16": "packed, bf16 x",
    "packed W1.58A8": "packed, int8 x",
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


def table(record: dict[str, Any]) -> str:
    machine = record["machine"]
    rows = {(row["m"], row["k"], row["n"], row["name"]): row for row in record["rows"]}
    names = {name: title for name, title in COLUMNS.items() if any(key[3] == name for key in rows)}
    lines = [
        f"**{machine['name']}, {machine['threads']} thread(s)**",
        "",
        "| batch, in → out | nn.Linear fp32 | " + " | ".join(names.values()) + " | bytes, fp32 / packed |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for m, k, n in dict.fromkeys(key[:3] for key in rows):
        base, packed = rows[m, k, n, BASE], rows[m, k, n, "packed W1.58A16 fp32"]
        cells = [time_text(base["median_s"]), *(cell(rows.get((m, k, n, name))) for name in names)]
        size = f"{base['parameter_bytes'] / packed['parameter_bytes']:.1f}"
        lines.append(f"| {m}, {k} → {n} | " + " | ".join(cells) + f" | {size} |")
    busy = machine["busy_cpus_before"]
    lines += [
        "",
        f"`{machine['command']}`, {machine['date']}: torch {machine['torch']} ({machine['torch_cpu_capability']}), "
        f"bittorch {machine['bittorch']}, {busy} CPUs busy with other work just before.",
    ]
    return "\n".join(lines)


def everything() -> str:
    paths = sorted((ROOT / "benchmark" / "results").glob("packed_inference_*.json"))
    if not paths:
        sys.exit("no benchmark/results/packed_inference_*.json; run: python benchmark/bench_packed_inference.py")
    intro = (
        "Median latency of one layer and, in brackets, its speed over `nn.Linear` fp32 in the same run "
        "(bold: faster, below 1: slower). Weights hot, calls interleaved; bytes are those of all parameters, "
        "scales included."
    )
    return "\n\n".join([intro, *(table(json.loads(path.read_text())) for path in paths)])


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
