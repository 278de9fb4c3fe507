"""Attention of one new token to a cache of keys and values, beside torch's and beside reading the cache once.

Run: python benchmark/bench_decode_attention.py
A call attends to the caches of several layers in turn, as a model does, so that keys and values come from where a
model's come from. The figure is the time of one layer: on one thread the thread's CPU time, so that what other programs
take of the core does not count.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import _timing as timing
import torch
from torch import Tensor
from torch.nn import functional as F

from bittorch import _C, ops

OP, READ, SDPA = "decode_attention", "reading the cache", "scaled_dot_product_attention"
SHAPES = {"2B-4T": (20, 5, 128, 10), "SmolLM2-135M": (9, 3, 64, 30)}  # heads, kv_heads, head_dim, layers
LENGTHS, DTYPES = (512, 4096), (torch.float32, torch.bfloat16, torch.float16)
ROUNDS = 15
MOST_OF_READING = 1.3  # at 4096 tokens


def variants() -> list[str]:
    rows = [row for row in _C.kernels() if row["op"] == OP and row["device"] == "cpu" and row["usable"]]
    return [row["variant"] for row in rows if row["variant"] != "scalar"]


def calls(shape: tuple[int, int, int, int], length: int, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """Each candidate over the caches of all layers; queries in the dtype of the cache, as torch's wants them."""
    heads, kv_heads, dim, layers = shape
    caches = [torch.randn(2, 1, kv_heads, length, dim).to(dtype) for _ in range(layers)]
    q = torch.randn(1, heads, dim).to(dtype)

    def ours(variant: str) -> Callable[[], None]:
        def call() -> None:
            _C.force_kernel(OP, variant)
            for cache in caches:
                ops.decode_attention(q, cache, [length])
            _C.force_kernel(OP, None)

        return call

    def torchs() -> None:
        for cache in caches:
            F.scaled_dot_product_attention(q.view(1, kv_heads, heads // kv_heads, dim), *cache.unbind())

    def read() -> None:
        for cache in caches:
            _summed(cache)

    return {**{name: ours(name) for name in variants()}, SDPA: torchs, READ: read}


def _summed(cache: Tensor) -> Tensor:
    return cache.view(torch.float32).sum()  # of the bits, whatever their dtype: a sum of floats is torch's fastest read


def measure(name: str, length: int, dtype: torch.dtype, args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = SHAPES[name]
    size = 2 * shape[1] * length * shape[2] * dtype.itemsize
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    candidates = calls(shape, length, dtype)
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for turn in range((3 if args.quick else ROUNDS) + 1):  # the first warms up
        for candidate, call in candidates.items():
            start = clock()
            call()
            if turn:
                times[candidate].append((clock() - start) / shape[3])
    found = {candidate: median(values) for candidate, values in times.items()}
    print(f"\n{name}, {length} tokens, {str(dtype).removeprefix('torch.')}")
    rows = []
    for candidate, seconds in found.items():
        ratio = seconds / found[READ]
        print(f"  {candidate:32}{timing.time_text(seconds):>10}{size / seconds / 1e9:8.1f} GB/s{ratio:8.2f} x reading")
        of = {"model": name, "tokens": length, "dtype": str(dtype), "name": candidate}
        rows.append({**of, "median_s": seconds, "bytes": size, "over_reading": ratio})
    return rows


def main() -> None:
    args = timing.parse_args(__doc__)
    machine = timing.machine(args)
    print(timing.header(machine))
    torch.manual_seed(0)
    lengths = LENGTHS[:1] if args.quick else LENGTHS
    rows = [row for name in SHAPES for dtype in DTYPES for n in lengths for row in measure(name, n, dtype, args)]
    print()
    wanted = [
        timing.verdict(
            f"{row['model']}, {row['tokens']} tokens, {row['dtype']}, time over reading",
            row["over_reading"],
            MOST_OF_READING,
            at_least=False,
        )
        for row in rows
        if row["tokens"] == LENGTHS[-1] and row["name"] == variants()[0]
    ]
    timing.save(args, "decode_attention", {"machine": machine, "rows": rows, "wanted": wanted})


if __name__ == "__main__":
    with torch.inference_mode():
        main()
