"""A ternary convolution against nn.Conv2d, at batch 1 and 32, on the layers of ResNet-20.

Each candidate is a module called from Python: nn.Conv2d in fp32 and bf16, and `TernaryConv2dInference` with float32,
bfloat16 and float32 input quantised to 8 and 24 bits. Weights are hot. Only the kernels of a device that has some are
claimed: there is no CUDA kernel of this op.
"""

import copy
from typing import Any

import torch
from _timing import header, interleaved, machine, parse_args, save, tensor_bytes, time_text, verdict
from torch import nn

import bittorch

LAYERS = [  # in, out channels, size, stride, kernel; the layers of ResNet-20 on 32 x 32
    (3, 16, 32, 1, 3),
    (16, 16, 32, 1, 3),
    (16, 32, 32, 2, 3),
    (32, 32, 16, 1, 3),
    (32, 64, 16, 2, 3),
    (64, 64, 8, 1, 3),
    (16, 32, 32, 2, 1),
]


def _packed(conv: nn.Conv2d, bits: int | None) -> nn.Module:
    layer = bittorch.TernaryConv2d.from_conv2d(conv, bittorch.TernaryQuantConfig(activation_bits=bits))
    return bittorch.export_conv2d_to_inference(layer)


def _measure(args: Any, batch: int, layer: tuple[int, int, int, int, int]) -> dict[str, Any]:
    channels, out, size, stride, kernel = layer
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2)
    x = torch.randn(batch, channels, size, size)
    half = copy.deepcopy(conv).bfloat16()
    floats, int8, digits = (_packed(conv, bits) for bits in (None, 8, 24))
    x_half = x.bfloat16()
    calls = {
        "nn.Conv2d fp32": lambda: conv(x),
        "nn.Conv2d bf16": lambda: half(x_half),
        "ternary fp32 x": lambda: floats(x),
        "ternary bf16 x": lambda: floats(x_half),
        "ternary int8 x": lambda: int8(x),
        "ternary 24-bit x": lambda: digits(x),
    }
    times = interleaved(calls, args)
    return {
        "batch": batch,
        "in_channels": channels,
        "out_channels": out,
        "size": size,
        "stride": stride,
        "kernel": kernel,
        "bytes": {"nn.Conv2d fp32": tensor_bytes(conv), "ternary": tensor_bytes(int8)},
        "times": times,
    }


def _print(row: dict[str, Any]) -> None:
    base = row["times"]["nn.Conv2d fp32"]["median_s"]
    cells = [f"{name} {time_text(t['median_s'])} ({base / t['median_s']:.2f}x)" for name, t in row["times"].items()]
    name = f"{row['in_channels']} -> {row['out_channels']}, {row['size']}^2, {row['kernel']}x{row['kernel']}"
    print(f"batch {row['batch']}, {name} / {row['stride']}: {', '.join(cells)}")


def main() -> None:
    args = parse_args(__doc__ or "")
    torch.manual_seed(0)
    record = {"machine": machine(args)}
    print(header(record["machine"]))
    layers, batches = (LAYERS[1:2], (1,)) if args.quick else (LAYERS, (1, 32))
    rows = []
    with torch.inference_mode():
        for batch in batches:
            for layer in layers:
                rows.append(_measure(args, batch, layer))
                _print(rows[-1])
    slowest = {
        name: min(
            row["times"]["nn.Conv2d fp32"]["median_s"] / row["times"][name]["median_s"]
            for row in rows
            if row["batch"] == 1
        )
        for name in ("ternary fp32 x", "ternary int8 x")
    }
    verdicts = [
        verdict(f"{name} against nn.Conv2d fp32, the slowest layer of batch 1", ratio, 1.0)
        for name, ratio in slowest.items()
    ]
    save(args, "ternary_conv2d", {**record, "rows": rows, "wanted": verdicts})


if __name__ == "__main__":
    main()
