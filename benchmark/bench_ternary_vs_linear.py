"""Training of one linear layer: forward and forward+backward of nn.Linear and of TernaryLinear.

Run: python benchmark/bench_ternary_vs_linear.py --threads 1
TernaryLinear quantises its weight in every forward, so it is expected to be slower than nn.Linear where the batch is
small; the table says by how much. Backward makes the gradients of input, weight and bias.
Ratios are to the same pass of nn.Linear fp32 in the same run; above 1 is faster than fp32.
"""

from typing import Any

import _timing as timing
import torch
from torch import nn

FP32 = "nn.Linear fp32"
KINDS: dict[str, tuple[torch.dtype, bool, int | None]] = {  # dtype, ternary?, activation bits
    FP32: (torch.float32, False, None),
    "nn.Linear bf16": (torch.bfloat16, False, None),
    "TernaryLinear fp32": (torch.float32, True, None),
    "TernaryLinear bf16": (torch.bfloat16, True, None),
    "TernaryLinear fp32 A8": (torch.float32, True, 8),
    "TernaryLinear fp32 A24": (torch.float32, True, 24),
}
TRAINING_SHAPES = [(m, k, n) for k, n in ((1024, 4096), (2560, 2560)) for m in (128, 512, 2048)]


class Step:
    """Calling it runs the layer forward, or forward and backward."""

    def __init__(self, module: nn.Module, x: torch.Tensor, backward: bool) -> None:
        self.module, self.x, self.backward = module, x, backward
        with torch.no_grad():
            self.grad = torch.randn_like(module(x))

    def __call__(self) -> None:
        if not self.backward:
            with torch.no_grad():
                self.module(self.x)
            return
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None
        self.module(self.x).backward(self.grad)


def make(kind: str, shape: tuple[int, int, int], device: str, backward: bool) -> Step:
    dtype, ternary, bits = KINDS[kind]
    m, k, n = shape
    module = timing.ternary_layer(k, n, device, dtype, bits) if ternary else nn.Linear(k, n, device=device, dtype=dtype)
    return Step(module, torch.randn(m, k, device=device, dtype=dtype, requires_grad=backward), backward)


def measure(shape: tuple[int, int, int], backward: bool, args: Any) -> list[dict[str, Any]]:
    phase = "forward+backward" if backward else "forward"
    peaks = {
        kind: timing.cuda_peak_bytes(lambda k=kind: make(k, shape, args.device, backward), args.device)
        for kind in KINDS
    }
    steps = {kind: make(kind, shape, args.device, backward) for kind in KINDS}
    times = timing.interleaved(steps, args)
    m, k, n = shape
    rows = []
    print(f"\n({m}, {k} -> {n}) {phase:18}{'median':>14}{'x fp32':>8}{'param. bytes':>14}")
    for kind, step in steps.items():
        ratio = times[FP32]["median_s"] / times[kind]["median_s"]
        size = timing.tensor_bytes(step.module)
        print(f"  {kind:36}{timing.time_text(times[kind]['median_s']):>14}{ratio:8.2f}{size:14,}")
        rows.append(
            {"m": m, "k": k, "n": n, "name": kind, "phase": phase, **times[kind], "speedup_over_fp32": ratio}
            | {"parameter_bytes": size, "peak_device_bytes": peaks[kind]}
        )
    return rows


def main() -> None:
    args = timing.parse_args(__doc__, timing.add_shapes)
    machine = timing.machine(args)
    print(timing.header(machine))
    torch.manual_seed(0)
    rows = [
        row
        for shape in timing.shapes(args, TRAINING_SHAPES)
        for backward in (False, True)
        for row in measure(shape, backward, args)
    ]
    timing.save(args, "ternary_vs_linear", {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
