"""What a call costs besides its kernel, and what a busy core costs a call.

Run: python benchmark/bench_call_overhead.py --threads 2
Small layers: the time of a call at 4 -> 4, where the kernel takes about a tenth of a microsecond, is overhead; 64 -> 64
is a small layer as people have them. Busy core: another process spins on one of the cores that torch's threads use;
single calls are timed, because a mean hides a thread that lost its core and a median hides it too.
"""

import os
import subprocess
import sys
import timeit
from statistics import mean, median
from typing import Any

import _timing as timing
import torch
from torch import nn

import bittorch

SIZES = (4, 64)
BUSY_SHAPES = ((1, 2560, 2560), (1, 4096, 4096), (32, 2560, 2560))
NN_LINEAR = "nn.Linear"


def small_calls(size: int, grad: bool) -> dict[str, timing.Call]:
    """Each with its operands at hand, as compiled code or a tight loop has them."""
    linear = nn.Linear(size, size)
    layer = bittorch.TernaryLinear(size, size)
    packed, int8 = (
        bittorch.export_for_inference(bittorch.TernaryLinear(size, size, activation_bits=bits)) for bits in (None, 8)
    )
    x = torch.randn(1, size, requires_grad=grad)
    operands = x, packed.weight_packed, packed.scale, packed.bias
    weight, bias = linear.weight.detach(), linear.bias.detach()
    product, w2a8 = torch.ops.bittorch.ternary_linear_packed.default, torch.ops.bittorch.ternary_linear_w2a8.default
    return {
        "torch.nn.functional.linear": lambda: nn.functional.linear(x, weight, bias),
        "ternary_linear_packed": lambda: product(*operands),
        "ternary_linear_w2a8": lambda: w2a8(*operands),
        NN_LINEAR: lambda: linear(x),
        "TernaryLinearInference fp32 x": lambda: packed(x),
        "TernaryLinearInference int8 x": lambda: int8(x),
        "TernaryLinear, training": lambda: layer(x),
    }


def measure_small(args: Any) -> list[dict[str, Any]]:
    rows = []
    number, rounds = (200, 3) if args.quick else (2000, 25)
    for size in SIZES:
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                timers = {name: timeit.Timer(call) for name, call in small_calls(size, grad).items()}
                times: dict[str, list[float]] = {name: [] for name in timers}
                for _ in range(rounds):
                    for name, timer in timers.items():
                        times[name].append(timer.timeit(number) / number)
            print(f"\n1, {size} -> {size}, {'with' if grad else 'without'} gradients")
            for name, values in times.items():
                print(f"  {name:36}{timing.time_text(median(values)):>14}")
                rows.append({"size": size, "grad": grad, "name": name, "median_s": median(values)})
    return rows


def single_calls(call: timing.Call, seconds: float) -> list[float]:
    """Times of single calls, one after another, sorted."""
    for _ in range(3):
        call()
    times: list[float] = []
    while sum(times) < seconds:
        times.append(timeit.timeit(call, number=1))
    return sorted(times)


def measure_busy(args: Any) -> list[dict[str, Any]]:
    rows = []
    for m, k, n in BUSY_SHAPES:
        linear = nn.Linear(k, n)
        int8 = bittorch.export_for_inference(bittorch.TernaryLinear(k, n, activation_bits=8))
        x = torch.randn(m, k)
        calls = {NN_LINEAR: lambda f=linear, x=x: f(x), "W1.58A8": lambda f=int8, x=x: f(x)}
        print(f"\n{m}, {k} -> {n}, {args.threads} thread(s){'median':>22}{'mean':>12}{'p99':>12}")
        for name, call in calls.items():
            row: dict[str, Any] = {"m": m, "k": k, "n": n, "name": name}
            for state in ("idle", "one core busy"):
                spinner = None if state == "idle" else _spin()
                try:
                    with torch.no_grad():
                        times = single_calls(call, 0.2 if args.quick else 3.0)
                finally:
                    if spinner:
                        spinner.kill()
                        spinner.wait()
                figures = {"median_s": median(times), "mean_s": mean(times), "p99_s": times[int(0.99 * len(times))]}
                print(f"  {name:12}{state:16}" + "".join(f"{timing.time_text(v):>12}" for v in figures.values()))
                row[state] = figures | {"calls": len(times)}
            row["median_ratio"] = row["one core busy"]["median_s"] / row["idle"]["median_s"]
            rows.append(row)
    return rows


def _spin() -> subprocess.Popen[bytes]:
    """A process that never rests, kept on the last core."""
    cores = sorted(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{cores[-1]}}}); print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def report(small: list[dict[str, Any]], busy: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {(row["size"], row["grad"], row["name"]): row["median_s"] * 1e6 for row in small}
    verdicts = []
    print()
    for op in ("ternary_linear_packed", "ternary_linear_w2a8"):
        for grad, limit in ((False, 3.0), (True, 5.0)):
            what = f"{op}, us a call {'with' if grad else 'without'} gradients"
            verdicts.append(timing.verdict(what, found[4, grad, op], limit, at_least=False))
    for name in ("TernaryLinearInference fp32 x", "TernaryLinearInference int8 x"):
        ratio = found[64, False, name] / found[64, False, NN_LINEAR]
        verdicts.append(timing.verdict(f"{name}, 64 -> 64, time over nn.Linear's", ratio, 1.0, at_least=False))
    for row in busy:
        if row["name"] != NN_LINEAR:
            what = f"W1.58A8 {row['m']}, {row['k']} -> {row['n']}, median with one core busy over idle"
            verdicts.append(timing.verdict(what, row["median_ratio"], 1.5, at_least=False))
    return verdicts


def main() -> None:
    args = timing.parse_args(__doc__)
    machine = timing.machine(args)
    print(timing.header(machine))
    torch.manual_seed(0)
    small, busy = measure_small(args), measure_busy(args)
    timing.save(
        args,
        "call_overhead",
        {"machine": machine, "small": small, "busy_core": busy, "wanted": report(small, busy)},
    )


if __name__ == "__main__":
    main()
