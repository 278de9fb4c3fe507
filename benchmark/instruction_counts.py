"""Instructions for each product of a weight and an activation, by kernel: repeatable where times are noisy.

Run: python benchmark/instruction_counts.py         (writes benchmark/results/instruction_counts.json)
Two counts. `callgrind`: everything that a call runs, by valgrind; it knows neither AVX-512 nor AVX-VNNI, so those
kernels have none. `inner loop`: a pass of the loop that holds the products, out of the object code, without what
surrounds it; also for the other machine where its cross compiler is installed. Fewer is not always faster: an
instruction on 64 bytes does more than one on 32, and CPUs differ. Counts are of one compiler: compare within a file.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.kernels import hot_loops  # noqa: E402

RESULT = ROOT / "benchmark" / "results" / "instruction_counts.json"
CALLS = (1, 5)
ROWS = 256  # out_features
# Batch, in_features, group: whole blocks of 256, a block of which half is left, and groups.
CASES = [
    (1, 2560, 2560),
    (4, 2560, 2560),
    (8, 2560, 2560),
    (1, 640, 640),
    (4, 640, 640),
    (1, 2560, 128),
    (4, 2560, 128),
]
# Products in an instruction: opcode by its beginning, and a register of that width.
PRODUCTS = {
    ("vpdpbusd", "zmm"): 64,
    ("vpdpbusd", "ymm"): 32,
    ("vdpbf16ps", "zmm"): 32,
    ("vpmaddubsw", "ymm"): 32,
    ("vfmadd", "zmm"): 16,
    ("vfmadd", "ymm"): 8,
    ("sdot", ""): 16,
    ("smmla", ""): 32,
    ("smlal", ""): 8,
    ("fmla", ""): 4,
}


def build(folder: Path) -> Path:
    """The driver with every kernel of this machine, compiled by $CC or cc as setup.py does it."""
    compiler = [*shlex.split(os.environ.get("CC", "cc")), "-std=c11", *hot_loops.COMMON]
    jobs: list[tuple[Path, list[str]]] = [(ROOT / "benchmark" / "count_kernel.c", [])]
    jobs += [(ROOT / "csrc" / "dispatch" / name, []) for name in ("kernel_table.c", "cpu_features.c")]
    for source in sorted(hot_loops.SOURCES.glob("*.c")):
        machine, flags = hot_loops.ISA_FLAGS[source.stem.rsplit("_", 1)[1]]
        if machine in (None, hot_loops.MACHINE):
            jobs.append((source, flags))

    def compile_one(job: tuple[Path, list[str]]) -> Path:
        obj = folder / f"{job[0].stem}.o"
        subprocess.run([*compiler, *job[1], "-c", job[0], "-o", obj], check=True)
        return obj

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    subprocess.run([*compiler, *objects, "-lm", "-o", folder / "count_kernel"], check=True)
    return folder / "count_kernel"


def instructions(program: Path, *arguments: object) -> int | None:
    """What callgrind counts; None where this CPU, as valgrind shows it, has no such kernel."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        return None
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[1])


def kernels(op: str) -> list[str]:
    """Variants of an op that have a file for this machine."""
    found = []
    for source in sorted(hot_loops.SOURCES.glob(f"{op}_*.c")):
        variant = source.stem.removeprefix(f"{op}_")
        if hot_loops.ISA_FLAGS[variant][0] in (None, hot_loops.MACHINE):
            found.append(variant)
    return found


def count_calls(program: Path) -> Iterator[dict[str, Any]]:
    named = [(op, v) for op in ("ternary_linear_w2a8", "ternary_linear_packed", "act_quantize") for v in kernels(op)]
    for op, variant in [*named, ("prepare", "scalar")]:
        product = op.startswith("ternary")
        for m, k, group in CASES if product else CASES[:1]:
            few, many = (instructions(program, op, variant, m, ROWS, k, group, calls) for calls in CALLS)
            if few is None or many is None:
                print(f"{op} {variant}: valgrind does not know its instructions")
                break
            call = (many - few) / (CALLS[1] - CALLS[0])
            row = {"op": op, "variant": variant, "method": "callgrind", "m": m, "k": k, "instructions_a_call": call}
            if product:
                each = {"n": ROWS, "group": group, "a_weight": call / (ROWS * k), "a_product": call / (m * ROWS * k)}
            else:
                each = {"an_element": call / (m * k)}
            yield {**row, **each}


def count_loops(folder: Path) -> Iterator[dict[str, Any]]:
    for name, kernel in hot_loops.KERNELS.items():
        try:
            text = hot_loops.listing(name, folder)
        except FileNotFoundError as error:
            print(f"{name}: {error}")
            continue
        width = next((r for r in ("zmm", "ymm") if re.search(rf"{kernel.product}\w*\s.*%{r}", text)), "")
        if (kernel.product, width) not in PRODUCTS:
            sys.exit(f"how many products has {kernel.product} {width} of {name}? Add it to PRODUCTS")
        op, _, variant = name.rpartition("_")
        seen = set()
        for loop in hot_loops.hot_loops(text, kernel):
            what = [r.what for r in kernel.loops if (r.products, r.decodes) == (loop.products, loop.decodes)]
            tokens = int(what[0].split()[0]) if what else None
            if (tokens, loop.instructions) in seen:
                continue
            seen.add((tokens, loop.instructions))
            products = loop.products * PRODUCTS[kernel.product, width]
            row = {
                "op": op,
                "variant": variant,
                "method": "inner loop",
                "m": tokens,
                "instructions_a_pass": loop.instructions,
            }
            each = {"product_instructions": loop.products, "products_a_pass": products}
            share = {"a_product": loop.instructions / products}
            if tokens:
                share["a_weight"] = tokens * loop.instructions / products
            yield {**row, **each, **share}


def show(row: dict[str, Any]) -> None:
    case = f"batch {row['m']}" + (f", k {row['k']}" if "k" in row else "")
    case += f", group {row['group']}" if row.get("group", row.get("k")) != row.get("k") else ""
    figures = [
        f"{row[key]:8.4f} {key.replace('_', ' ')}" for key in ("a_weight", "a_product", "an_element") if key in row
    ]
    print(f"{row['op']:22} {row['variant']:11} {row['method']:11} {case:28}" + " ".join(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the instructions of the CPU kernels.")
    parser.add_argument("--json", type=Path, default=RESULT, help="default: benchmark/results/instruction_counts.json")
    args = parser.parse_args()
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        sys.exit(f"{compiler[0]} not found; install a C compiler or set CC")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shutil.which("valgrind"):
            for row in count_calls(build(folder)):
                show(row)
                rows.append(row)
        else:
            print("valgrind is not installed (apt-get install valgrind): inner loops only")
        for row in count_loops(folder):
            show(row)
            rows.append(row)
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]
    record = {"benchmark": "instruction_counts", "machine": hot_loops.MACHINE, "compiler": version, "rows": rows}
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
