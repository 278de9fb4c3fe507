"""Rows of a packed embedding and rotated blocks of activations, beside what torch has for them.

Run: python benchmark/bench_row_ops.py --threads 1
`ternary_embedding` beside nn.Embedding's lookup of the same rows as float32 and float16; `hadamard` beside the product
by its matrix, which torch would take.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import _timing as timing
import torch
from torch.nn import functional

from bittorch import ops
from bittorch.ops import reference

TOKENS, WIDTH, ROWS, BLOCK = (1, 32, 512), 4096, 32064, 512


def lookups(tokens: int, rows: int, width: int) -> dict[str, timing.Call]:
    codes = torch.randint(-1, 2, (rows, width), dtype=torch.int8)
    packed, index, scale = ops.ternary_pack(codes), torch.randint(rows, (tokens,)), torch.ones(rows)
    tables = {"float32": codes.float(), "float16": codes.half()}
    calls: dict[str, timing.Call] = {
        f"nn.Embedding {name}": partial(functional.embedding, index, table) for name, table in tables.items()
    }
    for dtype in (torch.float32, torch.float16):
        name = f"ternary_embedding {str(dtype).removeprefix('torch.')}"
        calls[name] = partial(ops.ternary_embedding, index, packed, scale, width, dtype)
    return calls


def rotations(tokens: int, width: int, block: int) -> dict[str, timing.Call]:
    x, matrix = torch.randn(tokens, width), reference.hadamard(torch.eye(block), block)
    torch.testing.assert_close(ops.hadamard(x, block), (x.view(-1, block) @ matrix).view_as(x), rtol=0, atol=1e-4)
    return {
        "x @ H float32": lambda: (x.view(-1, block) @ matrix).view_as(x),
        "hadamard float32": partial(ops.hadamard, x, block),
        "hadamard bfloat16": partial(ops.hadamard, x.bfloat16(), block),
    }


def cases(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, timing.Call]]]:
    rows, width, block = (256, 512, 128) if args.quick else (ROWS, WIDTH, BLOCK)
    for tokens in TOKENS[:2] if args.quick else TOKENS:
        yield f"{tokens} of {rows} rows of {width}", lookups(tokens, rows, width)
        yield f"{tokens} x {width} in blocks of {block}", rotations(tokens, width, block)


def main() -> None:
    args = timing.parse_args(__doc__)
    record = {"machine": timing.machine(args), "cases": []}
    for title, calls in cases(args):
        times = timing.interleaved(calls, args)
        record["cases"].append({"case": title, "times": times})
        for name, found in times.items():
            print(f"{title:32} {name:28} {1e6 * found['median_s']:10.1f} us", flush=True)
    timing.save(args, "row_ops", record)


if __name__ == "__main__":
    main()
