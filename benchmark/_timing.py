"""What the benchmarks share: interleaved medians in one process, the record of the machine, JSON files, the shapes.

Every candidate of a comparison is called in turn (A B C A B C ...), so that noise meets all of them alike; the figure
is the median over the rounds. Weights are hot: each call multiplies by the same ones, as a layer in a loop does. Ratios
compare candidates of one run only.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import bittorch
from bittorch import _C

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
SHAPES = [  # rows of x, in_features, out_features
    (32, 1024, 4096),
    (32 * 512, 768, 768),
    *((1, h, h) for h in (768, 1024, 2048, 4096, 8192)),
    (1, 2560, 2560),
    (32, 2560, 2560),
]
QUICK_SHAPES = [(1, 256, 256), (8, 256, 512)]
Call = Callable[[], object]


def parse_args(description: str, extend: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options of every benchmark, and those that ``extend`` adds."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--quick", action="store_true", help="two small shapes, few rounds: shows that it runs")
    parser.add_argument("--json", type=Path, help="result file (default: benchmark/results/..., nothing with --quick)")
    if extend:
        extend(parser)
    args = parser.parse_args()
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch.cuda.is_available() is False; use --device cpu")
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    return args


def _shape(text: str) -> tuple[int, int, int] | str:
    sizes = text.split("x")
    if text == "all":
        return text
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"must be all, or MxKxN such as 32x1024x4096 (rows, in, out), got {text!r}")
    m, k, n = map(int, sizes)
    return m, k, n


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """The option that `shapes` reads."""
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        help="all (default), or MxKxN: rows, in and out features; writes --json only",
    )


def shapes(args: argparse.Namespace, more: Sequence[tuple[int, int, int]] = ()) -> list[tuple[int, int, int]]:
    """What to measure: the shapes that the user gave, two small ones with --quick, else all of them and ``more``."""
    if args.shapes and "all" not in args.shapes:
        args.some_shapes = True
        return args.shapes
    return QUICK_SHAPES if args.quick and not args.shapes else [*SHAPES, *more]


def _timed(call: Call, repeats: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def interleaved(
    calls: dict[str, Call],
    args: argparse.Namespace,
    before: Callable[[str], None] | None = None,
    once_a_turn: bool = False,
    least: int = 9,
    base: str | None = None,
) -> dict[str, dict[str, float]]:
    """Median and quartiles, in seconds, of each call: warm-up, then rounds in which every call has its turn.

    ``before`` runs ahead of each turn, given the name of the call, and is not timed. At least ``least`` rounds. With a
    ``base`` also the median over the rounds of the time over that of ``base`` in the same round, which a load that
    comes and goes moves less than a ratio of medians.
    """
    budget, least = (0.05, 3) if args.quick else (2.0, least)
    repeats, round_time = {}, 0.0

    def turn(name: str, repeats: int) -> float:
        if before:
            before(name)
        return _timed(calls[name], repeats, args.device)

    for name in calls:
        start = time.perf_counter()
        once = turn(name, 1)
        outside = time.perf_counter() - start - once
        if once < 0.1:
            once = min(once, turn(name, 1), turn(name, 1))
        # Short calls: half a millisecond a turn.
        repeats[name] = 1 if once_a_turn else max(1, min(200, int(5e-4 / max(once, 1e-9))))
        round_time += once * repeats[name] + outside
    rounds = max(least, min(201, int(budget / round_time)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in calls:
            times[name].append(turn(name, repeats[name]))
    result = {}
    for name, values in times.items():
        ordered = sorted(values)
        result[name] = {
            "median_s": median(values),
            "quartile_low_s": ordered[len(ordered) // 4],
            "quartile_high_s": ordered[3 * len(ordered) // 4],
            "rounds": rounds,
        }
        if base is not None:
            result[name]["over_base"] = median(a / b for a, b in zip(values, times[base], strict=True))
    return result


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, scales and biases included."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values() if isinstance(t, Tensor))


def cuda_peak_bytes(make: Callable[[], Call], device: str) -> int | None:
    """Most device memory allocated while the layer is alone there and runs once; None on a CPU."""
    if device != "cuda":
        return None
    call = make()
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def ternary_layer(k: int, n: int, device: str, dtype: torch.dtype, activation_bits: int | None) -> nn.Module:
    """A `TernaryLinear` as it comes from its constructor."""
    return bittorch.nn.TernaryLinear(k, n, activation_bits=activation_bits, device=device, dtype=dtype)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = {}
    for key in ("model name", "cpu family", "model"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE)
        found[key] = match.group(1).strip() if match else ""
    if not found["model name"]:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found['cpu family']} model {found['model']})"


def _busy_cpus(seconds: float = 2.0) -> float | None:
    """CPUs that others keep busy just before the run: the load average lags, this does not. None outside Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def ticks() -> tuple[int, int]:
        values = [int(word) for word in stat.read_text().split("\n")[0].split()[1:]]
        return sum(values), values[3] + values[4]  # all, idle and waiting

    all_before, idle_before = ticks()
    time.sleep(seconds)
    all_after, idle_after = ticks()
    share = 1 - (idle_after - idle_before) / max(1, all_after - all_before)
    return round(share * (os.cpu_count() or 1), 2)


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a figure depends on."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    rows = _C.kernels()
    chosen = {
        f"{row['op']} {dtype}": _C.chosen_kernel(row["op"], args.device, dtype)
        for row in rows
        if row["device"] == args.device
        for dtype in row["dtypes"]
    }
    return {
        "device": args.device,
        "name": torch.cuda.get_device_name() if args.device == "cuda" else _cpu_model(),
        "cpu_features": _C.cpu_features(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "busy_cpus_before": _busy_cpus(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bittorch": bittorch.__version__,
        "python": platform.python_version(),
        "kernels": chosen,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": command(args),
    }


def command(args: argparse.Namespace) -> str:
    script = Path(sys.argv[0]).name
    return f"python benchmark/{script} --device {args.device} --threads {args.threads}" + " --quick" * args.quick


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(args: argparse.Namespace, benchmark: str, record: dict[str, Any]) -> None:
    """Writes ``record`` to --json, or to benchmark/results where the run measured all shapes at full length."""
    some = getattr(args, "some_shapes", False)
    if (args.quick or some) and not args.json:
        print(f"{'--quick' if args.quick else 'some shapes'}: no result file; give --json FILE to keep the figures")
        return
    name = f"{benchmark}_{slug(record['machine']['name'])}_{args.threads}t.json"
    path = args.json or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": benchmark, **record}, indent=1) + "\n")
    with contextlib.suppress(ValueError):
        path = path.resolve().relative_to(ROOT.resolve())
    print(f"written: {path}")


def header(record: dict[str, Any]) -> str:
    load = record["load_before"]
    return (
        f"{record['name']}, {record['threads']} of {record['cores']} threads, load {load},"
        f" {record['busy_cpus_before']} CPUs busy before, torch {record['torch']}"
        f" ({record['torch_cpu_capability']}), bittorch {record['bittorch']}\n{record['command']}"
    )


def verdict(what: str, value: float, wanted: float, at_least: bool = True) -> dict[str, Any]:
    """Prints and returns one wanted figure beside the measured one; a report, not a test."""
    passed = value >= wanted if at_least else value <= wanted
    sign = ">=" if at_least else "<="
    print(f"{'PASS' if passed else 'MISS'}  {what}: {value:.2f} (wanted {sign} {wanted:g})")
    return {"what": what, "value": value, "wanted": f"{sign} {wanted:g}", "pass": passed}


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
