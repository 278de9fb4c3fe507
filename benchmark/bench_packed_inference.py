"""Inference of one linear layer: nn.Linear in fp32, bf16 and torch's dynamic int8, against the packed ternary layer.

Run: python benchmark/bench_packed_inference.py --threads 1
Prints median latency, its ratio to nn.Linear fp32 of the same run (above 1: faster than fp32) and parameter bytes, for
W1.58A16 (fp32 and bf16 activations) and W1.58A8, then what the project wants beside what was measured. At 2560 x 2560
each W1.58A8 kernel of this CPU is also run by name.
"""

import warnings
from typing import Any

import _timing as timing
import torch
from torch import nn

import bittorch
from bittorch import _C

FP32, BF16, INT8 = "nn.Linear fp32", "nn.Linear bf16", "torch dynamic int8"
PACKED, PACKED_BF16, A8 = "packed W1.58A16 fp32", "packed W1.58A16 bf16", "packed W1.58A8"


class Layer:
    """A layer with its input; calling it runs the layer."""

    def __init__(self, module: nn.Module, x: torch.Tensor, parameter_bytes: int) -> None:
        self.module, self.x, self.parameter_bytes = module, x, parameter_bytes

    def __call__(self) -> torch.Tensor:
        return self.module(self.x)


def _plain(m: int, k: int, n: int, device: str, dtype: torch.dtype) -> Layer:
    module = nn.Linear(k, n, device=device, dtype=dtype).eval()
    return Layer(module, torch.randn(m, k, device=device, dtype=dtype), timing.tensor_bytes(module))


def _dynamic_int8(m: int, k: int, n: int) -> Layer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to torchao; it is the peer that torch ships
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(k, n)), {nn.Linear}, torch.qint8)
    scale_and_zero_point = 8 + 8
    return Layer(model, torch.randn(m, k), k * n + scale_and_zero_point + 4 * n)


class _Variant(nn.Module):
    """A packed int8 layer on one kernel."""

    def __init__(self, layer: bittorch.TernaryLinearInference, variant: str) -> None:
        super().__init__()
        self.layer, self.variant = layer, variant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        return bittorch.ops.ternary_linear_w2a8(x, layer.weight_packed, layer.scale, layer.bias, variant=self.variant)


def _packed(m: int, k: int, n: int, device: str, dtype: torch.dtype, bits: int | None, variant: str = "auto") -> Layer:
    layer = timing.ternary_layer(k, n, device, dtype, bits)
    module = bittorch.export_linear_to_inference(layer).eval()
    if variant != "auto":
        module = _Variant(module, variant)
    return Layer(module, torch.randn(m, k, device=device, dtype=dtype), timing.tensor_bytes(module))


def named_variants(device: str) -> list[str]:
    rows = [row for row in _C.kernels() if row["op"] == "ternary_linear_w2a8" and row["device"] == device]
    return [row["variant"] for row in rows if row["usable"] and row["variant"] != "scalar"]


def makers(m: int, k: int, n: int, device: str) -> dict[str, Any]:
    made = {
        FP32: lambda: _plain(m, k, n, device, torch.float32),
        BF16: lambda: _plain(m, k, n, device, torch.bfloat16),
        PACKED: lambda: _packed(m, k, n, device, torch.float32, None),
        PACKED_BF16: lambda: _packed(m, k, n, device, torch.bfloat16, None),
        A8: lambda: _packed(m, k, n, device, torch.float32, 8),
    }
    if device == "cpu":
        made[INT8] = lambda: _dynamic_int8(m, k, n)
    if (k, n) == (2560, 2560):
        for variant in named_variants(device):
            made[f"{A8} {variant}"] = lambda v=variant: _packed(m, k, n, device, torch.float32, 8, v)
    return made


def measure(m: int, k: int, n: int, args: Any) -> list[dict[str, Any]]:
    made = makers(m, k, n, args.device)
    peaks = {name: timing.cuda_peak_bytes(make, args.device) for name, make in made.items()}
    layers = {name: make() for name, make in made.items()}
    times = timing.interleaved(layers, args)
    fp32 = times[FP32]["median_s"]
    rows = []
    print(
        f"\n({m}, {k} -> {n}){'median':>36}{'x fp32':>8}{'param. bytes':>14}  "
        + "peak device bytes" * (args.device == "cuda")
    )
    for name, layer in layers.items():
        ratio = fp32 / times[name]["median_s"]
        peak = f"{peaks[name]:,}" if peaks[name] else ""
        text = timing.time_text(times[name]["median_s"])
        print(f"  {name:36}{text:>14}{ratio:8.2f}{layer.parameter_bytes:14,}  {peak}")
        rows.append(
            {"m": m, "k": k, "n": n, "name": name, **times[name], "speedup_over_fp32": ratio}
            | {"parameter_bytes": layer.parameter_bytes, "peak_device_bytes": peaks[name]}
        )
    return rows


def _wanted_bytes(table: dict[Any, dict[str, Any]], k: int, n: int, m: int) -> list[dict[str, Any]]:
    size = {name: table[m, k, n, name]["parameter_bytes"] for name in (FP32, BF16, PACKED, PACKED_BF16)}
    return [
        timing.verdict(f"{k}x{n} parameter bytes, fp32 over packed", size[FP32] / size[PACKED], 15),
        timing.verdict(f"{k}x{n} parameter bytes, bf16 over packed", size[BF16] / size[PACKED_BF16], 7.5),
    ]


def _wanted_a8(table: dict[Any, dict[str, Any]], shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    int8 = table[(*shape, INT8)]["median_s"]
    found = []
    for variant in named_variants("cpu"):
        row = table[(*shape, f"{A8} {variant}")]
        what = f"(32, 2560->2560) W1.58A8 {variant}"
        found.append(timing.verdict(f"{what}, speed over nn.Linear fp32", row["speedup_over_fp32"], 2))
        found.append(timing.verdict(f"{what}, time over torch dynamic int8", row["median_s"] / int8, 2, at_least=False))
    return found


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the project wants shown, beside what was measured."""
    table = {(row["m"], row["k"], row["n"], row["name"]): row for row in rows}
    shapes = list(dict.fromkeys((row["m"], row["k"], row["n"]) for row in rows))
    found = []
    print()
    for (k, n), m in {(k, n): m for m, k, n in shapes if k * n >= 1024 * 4096}.items():
        found += _wanted_bytes(table, k, n, m)
    for m, k, n in shapes:
        if m == 1 and min(k, n) >= 2048:
            speed = table[m, k, n, PACKED]["speedup_over_fp32"]
            found.append(timing.verdict(f"(1, {k}->{n}) packed fp32 activations, speed over nn.Linear fp32", speed, 1))
        if (m, k, n, INT8) in table and (m, k, n) == (32, 2560, 2560):
            found += _wanted_a8(table, (m, k, n))
    return found


@torch.inference_mode()
def main() -> None:
    args = timing.parse_args(__doc__, timing.add_shapes)
    machine = timing.machine(args)
    print(timing.header(machine))
    torch.manual_seed(0)
    rows = [row for shape in timing.shapes(args) for row in measure(*shape, args)]
    found = verdicts(rows)
    if args.device == "cpu":
        print("On a CPU the resident memory of a layer is its parameter bytes; no peak is measured.")
    timing.save(args, "packed_inference", {"machine": machine, "rows": rows, "wanted": found})


if __name__ == "__main__":
    main()
