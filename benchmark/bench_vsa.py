"""Vectors that bind: capacity beside the theory, and accuracy and CPU time beside torchhd.

Run: python benchmark/bench_vsa.py
Times are CPU time of this process, medians of calls that take turns. torchhd (PyPI torch-hd) is optional: its MAP model
holds vectors of -1 and 1 in float32, and its sums are either kept or cut to their sign, as ours are. Capacity: a record
of pairs is unbound by each key and cleaned up among the items; the mean of several records, beside `expected_accuracy`.
"""

import importlib.metadata
import time
from statistics import median
from typing import Any

import _timing as timing
import numpy as np
import torch

from bittorch import ops, vsa
from bittorch.vsa import ItemMemory

CAPACITY = [(d, n) for d in (1_000, 4_000, 10_000, 16_384) for n in (10, 50, 100, 250, 500)]
ITEMS, RECORDS = 500, 4
DIMENSION, PAIRS, STORED = 10_000, 500, 10_000
KERNEL_ROWS = 100  # in L2: 250 KB of 10,000 trits each


def capacity(args: Any) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'dimension':>9}{'pairs':>7}{'items':>7}{'found':>9}{'theory':>9}{'cosine':>9}{'theory':>9}")
    for dimension, pairs in CAPACITY[:2] if args.quick else CAPACITY:
        items = ItemMemory.random(range(ITEMS), dimension, seed=dimension)
        right, cosines = [], []
        for trial in range(RECORDS):
            keys, values = vsa.random(pairs, dimension, seed=trial), items.vectors[:pairs]
            found = items.clean_up(read := vsa.unbind(vsa.record(keys, values), keys))
            right.append((found.indices[:, 0] == np.arange(pairs)).mean())
            cosines.append(items.similarities(read)[np.arange(pairs), np.arange(pairs)].mean())
        row = {
            "dimension": dimension,
            "pairs": pairs,
            "items": ITEMS,
            "records": RECORDS,
            "accuracy": float(np.mean(right)),
            "expected_accuracy": vsa.expected_accuracy(dimension, pairs, ITEMS),
            "similarity": float(np.mean(cosines)),
            "expected_similarity": vsa.expected_similarity(pairs),
        }
        rows.append(row)
        print(f"{dimension:9}{pairs:7}{ITEMS:7}{row['accuracy']:9.1%}{row['expected_accuracy']:9.1%}", end="")
        print(f"{row['similarity']:9.4f}{row['expected_similarity']:9.4f}")
    return rows


def cpu_times(calls: dict[str, timing.Call], args: Any) -> dict[str, float]:
    """Median seconds of CPU time of each call, which take turns."""
    repeats, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        repeats[name] = max(1, min(500, int(0.005 / max(time.process_time() - start, 1e-6))))
    for _ in range(3 if args.quick else 9):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.process_time() - start) / repeats[name])
    return {name: median(values) for name, values in times.items()}


def _own(dimension: int, pairs: int, stored: int) -> tuple[dict[str, timing.Call], dict[str, float]]:
    keys, items = vsa.random(pairs, dimension, seed=0), vsa.random(stored, dimension, seed=1)
    memory, values = ItemMemory(items), items[:pairs]
    record = vsa.record(keys, values)
    read = vsa.unbind(record, keys)
    a, b, batch = items[0], items[1], read[:64]
    one, many = a.to_packed().view(1, -1), b.to_packed().repeat(KERNEL_ROWS, 1)
    right = memory.clean_up(read).indices[:, 0] == np.arange(pairs)
    calls: dict[str, timing.Call] = {
        "similarity of two": lambda: vsa.dot_similarity(a, b),
        f"trit_reduce of one with {KERNEL_ROWS}": lambda: ops.trit_reduce(many, one, dimension),
        "record of all pairs": lambda: vsa.record(keys, values),
        "clean-up, 1 query": lambda: memory.clean_up(a),
        "clean-up, 64 queries": lambda: memory.clean_up(batch),
    }
    return calls, {"trits": float(right.mean())}


def _torchhd(dimension: int, pairs: int, stored: int) -> tuple[dict[str, timing.Call], dict[str, float]]:
    import torchhd

    torch.manual_seed(0)
    keys, items = torchhd.random(pairs, dimension, "MAP"), torchhd.random(stored, dimension, "MAP")
    values = items[:pairs]
    found = {}
    for name, cut in (("sums", lambda t: t), ("signs", torch.sign)):
        read = torchhd.bind(cut(torchhd.hash_table(keys, values)), keys)
        right = torchhd.dot_similarity(read, items).argmax(-1) == torch.arange(pairs)
        found[name] = right.double().mean().item()
    a, b, batch = items[0], items[1], read[:64]
    calls: dict[str, timing.Call] = {
        "similarity of two": lambda: torchhd.dot_similarity(a, b),
        "record of all pairs": lambda: torch.sign(torchhd.hash_table(keys, values)),
        "clean-up, 1 query": lambda: torchhd.dot_similarity(a, items).argmax(-1),
        "clean-up, 64 queries": lambda: torchhd.dot_similarity(batch, items).argmax(-1),
    }
    return calls, found


def peers(args: Any) -> dict[str, Any]:
    sizes = (500, 20, 100) if args.quick else (DIMENSION, PAIRS, STORED)
    sides = {"bittorch": _own(*sizes)}
    try:
        sides[f"torchhd {importlib.metadata.version('torch-hd')}"] = _torchhd(*sizes)
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        print(f"\nno torchhd beside: {error}; pip install torch-hd")
    every = {f"{side}: {name}": call for side, (calls, _) in sides.items() for name, call in calls.items()}
    seconds = cpu_times(every, args)
    print(f"\n{sizes[0]} trits, {sizes[1]} pairs, {sizes[2]} items, CPU time")
    for name, value in seconds.items():
        print(f"  {name:44}{timing.time_text(value):>12}")
    accuracy = {side: found for side, (_, found) in sides.items()}
    print(f"  values found: {accuracy}")
    return {"dimension": sizes[0], "pairs": sizes[1], "items": sizes[2], "accuracy": accuracy, "cpu_seconds": seconds}


def report(result: dict[str, Any]) -> list[dict[str, Any]]:
    one, many = (result["cpu_seconds"][f"bittorch: clean-up, {n}"] for n in ("1 query", "64 queries"))
    reduced = result["cpu_seconds"][f"bittorch: trit_reduce of one with {KERNEL_ROWS}"]
    return [
        timing.verdict("similarity of 1 with 100, ns each", reduced / KERNEL_ROWS * 1e9, 100, at_least=False),
        timing.verdict("similarity of 64 with 10,000, ns each", many / 64 / STORED * 1e9, 100, at_least=False),
        timing.verdict("clean-up, 1 query, ms", one * 1e3, 5, at_least=False),
        timing.verdict("clean-up, 64 queries, ms each", many / 64 * 1e3, 1, at_least=False),
    ]


def main() -> None:
    args = timing.parse_args(__doc__)
    machine = timing.machine(args)
    print(timing.header(machine))
    rows, result = capacity(args), peers(args)
    verdicts = [] if args.quick else report(result)
    timing.save(args, "vsa", {"machine": machine, "capacity": rows, "peers": result, "verdicts": verdicts})


if __name__ == "__main__":
    main()
