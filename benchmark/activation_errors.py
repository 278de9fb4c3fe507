"""Relative L2 errors of the products against float64 by kind of activations; the table of docs/reference/ops.md.

Run: python benchmark/activation_errors.py
"""

import torch
from torch import Tensor

from bittorch import ops

TOKENS, IN_FEATURES, OUT_FEATURES = 32, 4096, 512


def main() -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUT_FEATURES, IN_FEATURES)
    packed, scale = ops.ternary_quantize(weight, "max", "ls", 0.05, "channel")
    dense = ops.ternary_unpack(packed, None, IN_FEATURES, torch.int8).double() * scale.double()[:, None]

    def product(x: Tensor, bits: int | None) -> Tensor:
        if bits is None:
            return ops.ternary_linear_packed(x, packed, scale)
        return ops.ternary_linear_w2a8(x, packed, scale, activation_bits=bits)

    rows = {
        "float32, `nn.Linear`": lambda x: torch.nn.functional.linear(x, dense.float()),
        "float32, `ternary_linear_packed`": lambda x: product(x, None),
        "24 bits": lambda x: product(x, 24),
        "16 bits": lambda x: product(x, 16),
        "float16": lambda x: product(x.half().float(), None),
        "bfloat16": lambda x: product(x.bfloat16().float(), None),
        "8 bits": lambda x: product(x, 8),
    }
    inputs = {"Gaussian": torch.randn(TOKENS, IN_FEATURES)}
    for factor in (30, 1000):
        x = torch.randn(TOKENS, IN_FEATURES)
        x[:, 7] *= factor
        inputs[f"outlier x{factor}"] = x
    print("| activations | " + " | ".join(inputs) + " |")
    print("|---" * (len(inputs) + 1) + "|")
    for name, run in rows.items():
        cells = []
        for x in inputs.values():
            exact = x.double() @ dense.t()
            cells.append(f"{(run(x).double() - exact).norm() / exact.norm():.1e}".replace("e-0", "e-"))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
