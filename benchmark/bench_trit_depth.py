"""A layer of trit depth 1 to 4 against nn.Linear: what each further plane costs.

Each candidate is a module called from Python: nn.Linear in fp32 and bf16, and `TernaryLinearInference` of each depth
with float32 activations, bfloat16 activations (widened at depth 2 and more) and float32 ones quantised to 8 bits.
Weights are hot.
"""

import copy
from functools import partial
from typing import Any

import torch
from _timing import header, interleaved, machine, parse_args, save, tensor_bytes, time_text
from torch import nn

from bittorch import TernaryLinearInference, TernaryQuantConfig

SHAPES = [(1, 2560, 2560), (32, 2560, 2560)]
DEPTHS = (1, 2, 3, 4)


def _measure(args: Any, batch: int, in_features: int, out_features: int) -> dict[str, Any]:
    linear = nn.Linear(in_features, out_features)
    x = torch.randn(batch, in_features)
    x_half = x.bfloat16()
    calls = {"nn.Linear fp32": partial(linear, x), "nn.Linear bf16": partial(copy.deepcopy(linear).bfloat16(), x_half)}
    layers = {depth: TernaryLinearInference.from_linear(linear, depth) for depth in DEPTHS}
    for depth, layer in layers.items():
        int8 = TernaryLinearInference.from_linear(linear, depth, TernaryQuantConfig(activation_bits=8))
        calls[f"depth {depth} fp32 x"] = partial(layer, x)
        calls[f"depth {depth} bf16 x"] = partial(layer, x_half)
        calls[f"depth {depth} int8 x"] = partial(int8, x)
    return {
        "batch": batch,
        "in_features": in_features,
        "out_features": out_features,
        "bytes": {"nn.Linear": tensor_bytes(linear)} | {f"depth {d}": tensor_bytes(m) for d, m in layers.items()},
        "times": interleaved(calls, args),
    }


def main() -> None:
    args = parse_args(__doc__ or "")
    torch.manual_seed(0)
    record = {"machine": machine(args)}
    print(header(record["machine"]))
    rows = []
    with torch.inference_mode():
        for shape in [(1, 256, 256)] if args.quick else SHAPES:
            rows.append(_measure(args, *shape))
            times = rows[-1]["times"]
            base = times["nn.Linear fp32"]["median_s"]
            cells = [f"{n} {time_text(t['median_s'])} ({base / t['median_s']:.2f}x)" for n, t in times.items()]
            print(f"batch {shape[0]}, {shape[1]} -> {shape[2]}: {', '.join(cells)}", flush=True)
    save(args, "trit_depth", {**record, "rows": rows})


if __name__ == "__main__":
    main()
