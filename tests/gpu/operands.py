"""What the tests of CUDA kernels multiply."""

import torch
from torch import Tensor

from bittorch import ops

DEVICE = "cuda"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SKINNY, BULK, UNPACK = "cuda_skinny", "cuda_bulk", "cuda_unpack"


def random_codes(*shape: int) -> Tensor:
    return torch.randint(-1, 2, shape, dtype=torch.int8)


def scales(granularity: str, n: int, k: int, group_size: int = 4) -> Tensor:
    shape = {"tensor": (1,), "channel": (n,), "group": (n, k // group_size)}[granularity]
    return torch.rand(shape) + 0.1


def operands(n: int, k: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, packed rows and scales."""
    codes = random_codes(n, k)
    scale = scales("group", n, k, group_size) if group_size else scales("channel", n, k)
    return codes, ops.ternary_pack(codes), scale
