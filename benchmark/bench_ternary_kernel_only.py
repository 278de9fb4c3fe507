"""The ops alone: every kernel that this machine can run, by name, with Gop/s = 2 m n k / time.

Run: python benchmark/bench_ternary_kernel_only.py --threads 1
Covers torch.ops.bittorch.ternary_linear_packed (fp32 and bf16 activations) and ternary_linear_w2a8 (int8 activations,
quantised before the clock starts). The scalar kernels define the ops and are not meant to be fast: they are skipped
above 1 Gop, and the file says so.
"""

from typing import Any

import _timing as timing
import torch

from bittorch import _C

SCALAR_LIMIT = 1e9
CASES = (
    ("ternary_linear_packed", torch.float32),
    ("ternary_linear_packed", torch.bfloat16),
    ("ternary_linear_w2a8", torch.int8),
)


def make(op: str, dtype: torch.dtype, variant: str, shape: tuple[int, int, int], device: str) -> timing.Call:
    m, k, n = shape
    codes = torch.randint(-1, 2, (n, k), dtype=torch.int8, device=device)
    w_packed = torch.ops.bittorch.ternary_pack(codes)
    scale = torch.rand(n, device=device) + 0.5
    if dtype == torch.int8:
        q, x_scale = torch.ops.bittorch.act_quantize(torch.randn(m, k, device=device))
        w2a8 = torch.ops.bittorch.ternary_linear_w2a8
        return lambda: w2a8(q, w_packed, scale, None, x_scale=x_scale, out_dtype=torch.float32, variant=variant)
    x = torch.randn(m, k, device=device, dtype=dtype)
    return lambda: torch.ops.bittorch.ternary_linear_packed(x, w_packed, scale, None, variant)


def usable(op: str, dtype: torch.dtype, shape: tuple[int, int, int], device: str) -> list[str]:
    """The kernels that take this problem."""
    name, (m, k, n) = str(dtype).removeprefix("torch."), shape
    major, minor = torch.cuda.get_device_capability() if device == "cuda" else (0, 0)
    problem = (m, n, k, 10 * major + minor)
    rows = [row for row in _C.kernels() if row["op"] == op and row["device"] == device and row["usable"]]
    variants = [row["variant"] for row in rows if name in row["dtypes"]]
    return [variant for variant in variants if _C.chosen_kernel(op, device, name, variant, *problem)]


def measure(shape: tuple[int, int, int], args: Any) -> tuple[list[dict[str, Any]], list[str]]:
    m, k, n = shape
    operations = 2 * m * n * k
    keys, skipped = [], []
    for op, dtype in CASES:
        for variant in usable(op, dtype, shape, args.device):
            key = (op, str(dtype).removeprefix("torch."), variant)
            if variant == "scalar" and operations > SCALAR_LIMIT:
                skipped.append(f"{' '.join(key)} at {shape}")
            else:
                keys.append((key, make(op, dtype, variant, shape, args.device)))
    times = timing.interleaved({" ".join(key): call for key, call in keys}, args)
    rows = []
    print(f"\n({m}, {k} -> {n}){'':40}{'median':>14}{'Gop/s':>10}")
    for (op, dtype, variant), _ in keys:
        time = times[f"{op} {dtype} {variant}"]
        gops = operations / time["median_s"] / 1e9
        print(f"  {op:24}{dtype:10}{variant:16}{timing.time_text(time['median_s']):>14}{gops:10.1f}")
        rows.append({"m": m, "k": k, "n": n, "op": op, "dtype": dtype, "variant": variant, **time, "gops": gops})
    return rows, skipped


@torch.inference_mode()
def main() -> None:
    args = timing.parse_args(__doc__, timing.add_shapes)
    machine = timing.machine(args)
    print(timing.header(machine))
    torch.manual_seed(0)
    rows, skipped = [], []
    for shape in timing.shapes(args):
        more, left_out = measure(shape, args)
        rows += more
        skipped += left_out
    print("".join(f"\nskipped (over 1 Gop): {item}" for item in skipped))
    timing.save(args, "ternary_kernel_only", {"machine": machine, "rows": rows, "skipped": skipped})


if __name__ == "__main__":
    main()
