"""Arrays of trits against NumPy's int8 arrays of the same trits, and products of trits against our W1.58A8 product.

Run: python benchmark/bench_arrays.py
Element-wise: G trits/s of a whole call that allocates its result, as NumPy's does; in L2 (160 KiB of packed codes) and
from memory (32 MiB), where a copy of the packed bytes with and without a new result is measured beside. NumPy's sum
wraps where ours saturates. Products: Gop/s = 2 m n k / time; NumPy's int8 product, which has no BLAS, at 256 alone.
"""

from typing import Any

import _timing as timing
import numpy as np
import torch

from bittorch import ops
from bittorch.array import TernaryArray

TRITS = {"L2": 655_360, "memory": 1 << 27}
PRODUCTS = [(1, 2560, 2560), (8, 2560, 2560), (32, 2560, 2560), (1024, 1024, 1024)]


def random_trits(*shape: int) -> Any:
    return np.random.default_rng(0).integers(-1, 2, shape, np.int8)


def measure_elementwise(args: Any) -> list[dict[str, Any]]:
    rows = []
    for place, count in TRITS.items():
        count = 4096 if args.quick else count
        x, y = random_trits(count), random_trits(count)[::-1].copy()
        a, b = TernaryArray(x), TernaryArray(y)
        packed = a.to_packed().numpy()
        out = np.empty_like(packed)
        calls: dict[str, timing.Call] = {
            "a * b": lambda a=a, b=b: a * b,
            "a + b": lambda a=a, b=b: a + b,
            "minimum(a, b)": lambda a=a, b=b: np.minimum(a, b),
            "-a": lambda a=a: -a,
            "a.sum()": lambda a=a: a.sum(),
            "NumPy a * b": lambda x=x, y=y: x * y,
            "NumPy a + b": lambda x=x, y=y: x + y,
            "NumPy minimum(a, b)": lambda x=x, y=y: np.minimum(x, y),
            "NumPy -a": lambda x=x: -x,
            "NumPy a.sum()": lambda x=x: x.sum(),
            "copy of the packed bytes": lambda p=packed: p.copy(),
            "copy to an array": lambda p=packed, o=out: np.copyto(o, p),
        }
        print(f"\n{place}, {count} trits{'G trits/s':>24}")
        for name, result in timing.interleaved(calls, args).items():
            rate = count / result["median_s"] / 1e9
            print(f"  {name:26}{rate:>14.1f}")
            rows.append({"place": place, "trits": count, "name": name, "gtrits_per_s": rate, **result})
    return rows


def measure_products(args: Any) -> list[dict[str, Any]]:
    rows = []
    for m, k, n in [(2, 256, 256)] if args.quick else PRODUCTS:
        a, w = (torch.from_numpy(random_trits(rows, k)) for rows in (m, n))
        a_packed, w_packed = ops.ternary_pack(a), ops.ternary_pack(w)
        planes, x, scale = ops.bitplane_pack(w_packed, k), a.float(), torch.ones(1)
        dense = x.numpy(), w.float().numpy().T
        left, right = TernaryArray.from_torch(a), TernaryArray.from_torch(w).T
        calls: dict[str, timing.Call] = {
            "bitplane_matmul, planes": lambda a=a_packed, b=planes, k=k: ops.bitplane_matmul(a, b, k, "planes"),
            "bitplane_matmul, rows": lambda a=a_packed, b=w_packed, k=k: ops.bitplane_matmul(a, b, k),
            "W1.58A8": lambda x=x, w=w_packed, s=scale: ops.ternary_linear_w2a8(x, w, s),
            "a @ b": lambda a=left, b=right: a @ b,
            "NumPy float32 a @ b": lambda a=dense[0], b=dense[1]: a @ b,
        }
        print(f"\n{m}, {k} -> {n}{'Gop/s':>28}")
        for name, result in timing.interleaved(calls, args, base="W1.58A8").items():
            rate = 2 * m * n * k / result["median_s"] / 1e9
            print(f"  {name:26}{rate:>14.1f}{timing.time_text(result['median_s']):>14}")
            rows.append({"m": m, "k": k, "n": n, "name": name, "gops": rate, **result})
    size = 64 if args.quick else 256
    x = random_trits(size, size)
    a = TernaryArray(x)
    print(f"\n{size}, {size} -> {size}{'Gop/s':>28}")
    for name, result in timing.interleaved({"a @ b": lambda: a @ a, "NumPy int8 a @ b": lambda: x @ x}, args).items():
        rate = 2 * size**3 / result["median_s"] / 1e9
        print(f"  {name:26}{rate:>14.1f}")
        rows.append({"m": size, "k": size, "n": size, "name": name, "gops": rate, **result})
    return rows


def report(elementwise: list[dict[str, Any]], products: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rate = {(row["place"], row["name"]): row["gtrits_per_s"] for row in elementwise}
    over = {(row["m"], row["name"]): row["over_base"] for row in products if "over_base" in row}
    gops = {(row["m"], row["name"]): row["gops"] for row in products}
    verdicts = []
    print()
    for name in ("a * b", "a + b", "minimum(a, b)"):
        verdicts.append(timing.verdict(f"{name} in L2, G trits/s", rate["L2", name], 100))
        verdicts.append(timing.verdict(f"{name} in L2 over NumPy", rate["L2", name] / rate["L2", f"NumPy {name}"], 4))
        ratio = rate["memory", name] / rate["memory", f"NumPy {name}"]
        verdicts.append(timing.verdict(f"{name} from memory over NumPy", ratio, 8))
    for m in (8, 32):
        verdicts.append(timing.verdict(f"planes over W1.58A8, {m} rows", 1 / over[m, "bitplane_matmul, planes"], 1.5))
    verdicts.append(timing.verdict("a @ b at 1024^3, Gop/s", gops[1024, "a @ b"], 500))
    return verdicts


def main() -> None:
    args = timing.parse_args(__doc__)
    machine = timing.machine(args)
    print(timing.header(machine))
    elementwise, products = measure_elementwise(args), measure_products(args)
    verdicts = [] if args.quick else report(elementwise, products)
    timing.save(
        args,
        "arrays",
        {"machine": machine, "elementwise": elementwise, "products": products, "verdicts": verdicts},
    )


if __name__ == "__main__":
    main()
