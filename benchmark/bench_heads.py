"""A head of a language model by its rows: halves, int8, quantised blocks, trit planes, and torch's own products.

Run: python benchmark/bench_heads.py --threads 1
One row of weights is read for each logit, so at one token every product waits for memory; figures are medians, and over
the base the median of ratios in the same round.
"""

from functools import partial
from typing import Any

import torch
from _timing import Call, header, interleaved, machine, parse_args, save, time_text

from bittorch import ops
from bittorch.quant import pack_trit_planes

ROWS, COLUMNS = 32768, 2560
TOKENS = (1, 4, 64)
BASE = "nn.Linear bf16"
Q6_K = 210  # bytes of 256 weights


def _calls(rows: int, tokens: int) -> dict[str, Call]:
    x, w = torch.randn(tokens, COLUMNS), torch.randn(rows, COLUMNS)
    halves = {"bf16": w.bfloat16(), "fp16": w.half()}
    i8 = torch.randint(-127, 128, (rows, COLUMNS), dtype=torch.int8)
    scale = torch.rand(rows)
    blocks = torch.randint(0, 60, (rows, COLUMNS // 256 * Q6_K), dtype=torch.uint8)
    packed, scales = pack_trit_planes(w, 4)
    calls: dict[str, Call] = {
        BASE: partial(torch.nn.functional.linear, x.bfloat16(), halves["bf16"]),
        "nn.Linear fp16": partial(torch.nn.functional.linear, x.half(), halves["fp16"]),
        "block_linear Q6_K": partial(ops.block_linear, x, blocks, "Q6_K"),
    }
    for name, weight in halves.items():
        calls[f"half_linear {name}"] = partial(ops.half_linear, x, weight)
    for bits in (8, 16):
        calls[f"linear_i8, {bits} bits"] = partial(ops.linear_i8, x, i8, scale, activation_bits=bits)
    calls["trit_depth_linear depth 4, 16 bits"] = partial(
        ops.trit_depth_linear, x, packed, scales[:rows], depth=4, activation_bits=16
    )
    calls["planes one by one, depth 4, 16 bits"] = partial(
        ops.ternary_linear_w2a8, x, packed, scales, activation_bits=16
    )
    return calls


def main() -> None:
    args = parse_args(__doc__ or "")
    torch.manual_seed(0)
    record: dict[str, Any] = {"machine": machine(args)}
    print(header(record["machine"]))
    found = []
    with torch.inference_mode():
        for tokens in TOKENS:
            rows = 1024 if args.quick else ROWS
            times = interleaved(_calls(rows, tokens), args, base=BASE)
            found.append({"tokens": tokens, "rows": rows, "columns": COLUMNS, "times": times})
            for name, t in times.items():
                print(
                    f"{tokens} tokens, {name}: {time_text(t['median_s'])} ({1 / t['over_base']:.2f}x {BASE})",
                    flush=True,
                )
    save(args, "heads", {**record, "rows": found})


if __name__ == "__main__":
    main()
