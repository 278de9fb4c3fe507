"""The CUDA products against torch: device and host time of every kernel, and how near the limit of memory it comes.

Run on a device: python benchmark/bench_cuda_kernels.py
Weights are cold: each call multiplies by the next of so many copies that all of them take more than twice the L2. The
device time of a call is that of a CUDA graph of one call a copy, replayed, by the number of copies; the host time is
that of the same calls enqueued one by one. Every candidate has its turn in every round; figures are medians.
The limit is a copy within the device, measured in the same run: "of limit" is the bytes that a product has to read and
write (weights, scales, activations, output) at the copy's bandwidth, as a fraction of its device time.
Where a machine is lent for minutes, --layers, --tokens and --no-training cut the table into runs.
Candidates: ternary_linear_packed in fp16 and bf16 and ternary_linear_w2a8 with its quantiser, for 8 and 24 bits, by the
automatic choice and by every kernel by name; nn.Linear in fp16 and bf16; torch._int_mm, from 17 tokens on; gemlite's
2-bit layer in groups of 128, where it is importable.
Then a training step, forward and backward, of TernaryLinear by method and granularity against nn.Linear of the same
dtype, and what makes its quantised weight, alone.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import _timing as timing
import torch
from torch import Tensor, nn

import bittorch
from bittorch import _C, TernaryQuantConfig, ops

LAYERS = [(2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192)]  # n, k
TOKENS = (1, 2, 4, 8, 16, 32, 128, 512, 2048)
QUICK_LAYERS, QUICK_TOKENS = [(2560, 2560)], (1, 8, 32)
STEPS, QUICK_STEPS = [(4096, 4096, 4096), (2048, 2560, 6912)], [(512, 1024, 1024)]  # tokens, k, n
CONFIGS = {
    "absmean, tensor": TernaryQuantConfig(method="absmean", per_channel=False),
    "max, row": TernaryQuantConfig(method="max", scale="ls"),
    "max, row, rms": TernaryQuantConfig(method="max", scale="rms"),
    "max, groups of 128": TernaryQuantConfig(method="max", scale="ls", granularity="group", group_size=128),
    "nm34, row": TernaryQuantConfig(method="nm34"),
    "max, row, int8 x": TernaryQuantConfig(method="max", scale="ls", activation_bits=8),
}
# Operations from which on a kernel is left out: those without tensor cores would take most of the time of a run.
LIMITS = {"cuda_baseline": 1e9, "cuda_tiled": 2e10}
# A call for each copy of the weights, given the index of the copy.
Product = Callable[[int], object]


def _layer(text: str) -> tuple[int, int]:
    n, k = map(int, text.split("x"))
    return n, k


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one layer, few rounds: shows that it runs")
    parser.add_argument("--tokens", type=int, nargs="+", help=f"some of the batches alone (default: {TOKENS})")
    parser.add_argument("--layers", type=_layer, nargs="+", help="some layers alone, OUTxIN each, as 4096x4096")
    parser.add_argument("--no-training", action="store_true", help="products alone")
    parser.add_argument("--json", type=Path, help="result file (default: benchmark/results/..., nothing with --quick)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark measures a CUDA device, and torch.cuda.is_available() is False")
    if not any(row["device"] == "cuda" for row in _C.kernels()):
        parser.error("this build of bittorch has no CUDA kernels; rebuild where nvcc is found (BITTORCH_CUDA=1)")
    args.device, args.threads = "cuda", torch.get_num_threads()
    return args


def compute_capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def copies_of(weight_bytes: int) -> int:
    """So many that all of them take more than twice the L2."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-2 * l2 // weight_bytes) + 1)


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written in a second by a copy of 1 GiB, or of a quarter of the free memory."""
    size = min(2**30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [event_time(lambda: target.copy_(source), 4) for _ in range(max(5, rounds))]
    return 2 * size / median(times)


def event_time(call: Callable[[], object], repeats: int) -> float:
    """Device seconds of a call, over `repeats` in a row."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def captured(product: Product, copies: int) -> torch.cuda.CUDAGraph:
    """A graph of one call a copy."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for index in range(copies):
            product(index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(copies):
            product(index)
    return graph


def host_time(product: Product, copies: int) -> float:
    """Seconds to enqueue a call, the device being idle before."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for index in range(copies):
        product(index)
    seconds = (time.perf_counter() - start) / copies
    torch.cuda.synchronize()
    return seconds


def variants(op: str, dtype: str, m: int, n: int, k: int, bits: int = 8) -> list[str]:
    """ "auto", and every kernel that takes the problem."""
    rows = [row for row in _C.kernels() if row["op"] == op and row["device"] == "cuda" and dtype in row["dtypes"]]
    names = [row["variant"] for row in rows]
    names = [name for name in names if 2 * m * (bits // 8) * n * k <= LIMITS.get(name, float("inf"))]
    problem = (m * (bits // 8), n, k, compute_capability())
    return ["auto", *(name for name in names if _C.chosen_kernel(op, "cuda", dtype, name, *problem))]


class Layer:
    """Copies of a layer's weights, made as they are needed: packed, dense by type, int8."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k
        self.codes = torch.randint(-1, 2, (n, k), dtype=torch.int8, device="cuda")
        self.scale = torch.rand(n, device="cuda") + 0.5

    def copies(self, weight: Tensor) -> list[Tensor]:
        return [weight.clone() for _ in range(copies_of(weight.numel() * weight.element_size()))]

    def bytes(self, m: int, weight: Tensor, x: Tensor, y_bytes: int) -> int:
        tensors = (weight, self.scale, x)
        return sum(t.numel() * t.element_size() for t in tensors) + m * self.n * y_bytes


def candidates(layer: Layer, m: int) -> list[tuple[str, Product, int, int]]:
    """Name, product, copies of the weights, bytes to be moved."""
    n, k, found = layer.n, layer.k, []
    x = torch.randn(m, k, device="cuda")

    def add(name: str, weights: list[Tensor], product: Callable[[Tensor], object], rows: Tensor, y_bytes: int) -> None:
        found.append((name, lambda i: product(weights[i]), len(weights), layer.bytes(m, weights[0], rows, y_bytes)))

    packed = layer.copies(ops.ternary_pack(layer.codes))
    for dtype in (torch.float16, torch.bfloat16):
        name, rows = str(dtype).removeprefix("torch."), x.to(dtype)
        dense = layer.copies(layer.codes.to(dtype))
        add(f"nn.Linear {name}", dense, lambda w, rows=rows: torch.nn.functional.linear(rows, w), rows, 2)
        for variant in variants("ternary_linear_packed", name, m, n, k):
            add(
                f"ternary_linear_packed {name} {variant}",
                packed,
                lambda w, rows=rows, v=variant: torch.ops.bittorch.ternary_linear_packed(rows, w, layer.scale, None, v),
                rows,
                2,
            )
    half = x.half()
    for bits in (8, 24):
        for variant in variants("ternary_linear_w2a8", "int8", m, n, k, bits):
            add(
                f"ternary_linear_w2a8 {bits} bits {variant}",
                packed,
                lambda w, b=bits, v=variant: torch.ops.bittorch.ternary_linear_w2a8(
                    half, w, layer.scale, None, activation_bits=b, variant=v
                ),
                half,
                2,
            )
    if m > 16 and n % 8 == k % 8 == 0:  # what it takes
        q, int8 = torch.ops.bittorch.act_quantize(half)[0], layer.copies(layer.codes)
        add("torch._int_mm", int8, lambda w: torch._int_mm(q, w.t()), q, 4)

    def add_peer(name: str, packed: list[Tensor], layers: list[Callable[[Tensor], object]], rows: Tensor) -> None:
        moved = layer.bytes(m, packed[0], rows, 2)
        found.append((name, lambda i: layers[i](rows), len(packed), moved))

    add_gemlite(layer, m, add_peer)
    return found


def add_gemlite(layer: Layer, m: int, add: Callable[..., None]) -> None:
    """One layer a copy, or a line that says why not."""
    try:
        from gemlite.core import DType, GemLiteLinear
    except ImportError:
        return
    n, k, group = layer.n, layer.k, 128
    try:
        layers = []
        for _ in range(copies_of(n * k // 4)):
            peer = GemLiteLinear(2, group, k, n, input_dtype=DType.FP16, output_dtype=DType.FP16)
            scales = layer.scale.half().repeat_interleave(k // group)[:, None]
            peer.pack((layer.codes + 1).to(torch.uint8), scales, torch.ones_like(scales), None)
            layers.append(peer)
        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        expected = x @ (layer.codes.half() * layer.scale.half()[:, None]).T
        error = ((layers[0](x) - expected).norm() / expected.norm()).item()
        if error > 1e-2:
            raise ValueError(f"its relative error is {error:.2g}")
    except Exception as error:  # a peer of any version, which may fail in any way
        print(f"  gemlite is left out: {type(error).__name__}: {error}")
        return
    packed = torch.empty(n, k // 4, dtype=torch.uint8)  # for the count of bytes
    add("gemlite 2 bits, groups of 128", [packed] * len(layers), layers, x)


def measure(layer: Layer, m: int, bandwidth: float, rounds: int) -> list[dict[str, Any]]:
    found = candidates(layer, m)
    graphs = {name: captured(product, copies) for name, product, copies, _ in found}
    device: dict[str, list[float]] = {name: [] for name in graphs}
    host: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, product, copies, _ in found:
            device[name].append(event_time(graphs[name].replay, 1) / copies)
            host[name].append(host_time(product, copies))
    rows = []
    reference = median(device["nn.Linear float16"])
    print(f"\n({m}, {layer.k} -> {layer.n}){'':32}{'device':>12}{'host':>12}{'of limit':>10}{'x fp16':>8}")
    for name, _, copies, moved in found:
        seconds, enqueued = median(device[name]), median(host[name])
        limit, ratio = moved / bandwidth / seconds, reference / seconds
        print(
            f"  {name:46}{timing.time_text(seconds):>12}{timing.time_text(enqueued):>12}{limit:10.2f}{ratio:8.2f}",
            flush=True,
        )
        rows.append(
            {"m": m, "k": layer.k, "n": layer.n, "name": name, "device_s": seconds, "host_s": enqueued}
            | {"of_limit": limit, "against_fp16": ratio, "copies": copies, "rounds": rounds}
        )
    return rows


def training_step(module: nn.Module, m: int, k: int, dtype: torch.dtype) -> Callable[[], object]:
    x = torch.randn(m, k, device="cuda", dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(module(x))

    def step() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).backward(gradient)

    return step


def quantized_weight(layer: bittorch.TernaryLinear) -> Tensor:
    """As the layer's own method, without its question whether the scales are finite, for which the host would wait."""
    codes = ops.ternary_quantize(layer.weight.detach(), *layer.config.op_args())
    return ops.ternary_unpack(*codes, layer.in_features, layer.weight.dtype)


def measure_training(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Device time of steps in a row, which the host has to keep ahead of; wanted: 1.10 of nn.Linear."""
    m, k, n = shape
    rows = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        calls = {"nn.Linear": training_step(nn.Linear(k, n, device="cuda", dtype=dtype), m, k, dtype)}
        for name, config in CONFIGS.items():
            layer = bittorch.TernaryLinear(k, n, config=config, device="cuda", dtype=dtype)
            calls[f"TernaryLinear {name}"] = training_step(layer, m, k, dtype)
            calls[f"its quantised weight, {name}"] = functools.partial(quantized_weight, layer)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(rounds + 2):  # two for warming up
            for name, call in calls.items():
                seconds = event_time(call, 4)
                if round_ >= 2:
                    times[name].append(seconds)
        print(f"\ntraining step, {m} tokens, {k} -> {n}, {str(dtype).removeprefix('torch.')}")
        for name, values in times.items():
            seconds, ratio = median(values), median(values) / median(times["nn.Linear"])
            print(f"  {name:46}{timing.time_text(seconds):>12}{ratio:8.2f}", flush=True)
            row = {"m": m, "k": k, "n": n, "dtype": str(dtype), "name": name}
            rows.append(row | {"device_s": seconds, "ratio": ratio})
    return rows


def main() -> None:
    args = parse_args()
    machine = timing.machine(args) | {
        "command": shlex.join(["python", "benchmark/bench_cuda_kernels.py", *sys.argv[1:]])
    }
    print(timing.header(machine))
    torch.manual_seed(0)
    rounds = 5 if args.quick else 21
    bandwidth = copy_bandwidth(rounds)
    print(f"a copy reads and writes {bandwidth / 1e9:.0f} GB/s")
    layers = args.layers or (QUICK_LAYERS if args.quick else LAYERS)
    tokens = args.tokens or (QUICK_TOKENS if args.quick else TOKENS)
    rows = []
    with torch.inference_mode():
        for (n, k), m in itertools.product(layers, tokens):
            rows += measure(Layer(n, k), m, bandwidth, rounds)
    training = []
    for shape in [] if args.no_training else QUICK_STEPS if args.quick else STEPS:
        training += measure_training(shape, rounds)
    record = {"machine": machine, "copy_bytes_per_s": bandwidth, "rows": rows, "training": training}
    timing.save(args, "cuda_kernels", record)


if __name__ == "__main__":
    main()
