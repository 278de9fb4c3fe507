"""Functions, counts and products of packed trits in plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from bittorch.ops.reference.packed import ternary_pack, ternary_unpack

_TRIT_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "add": lambda a, b: (a + b).clamp(-1, 1),
    "sub": lambda a, b: (a - b).clamp(-1, 1),
    "mul": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
    "consensus": lambda a, b: torch.where(a == b, a, 0),
    **{name: getattr(torch, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}


def trit_elementwise(a: Tensor, b: Tensor | None, function: str, columns: int) -> Tensor:
    values = [ternary_unpack(rows, None, columns, torch.int8) for rows in (a, b) if rows is not None]
    return ternary_pack(_TRIT_FUNCTIONS[function](*values).to(torch.int8))


def trit_reduce(a: Tensor, b: Tensor | None, columns: int) -> Tensor:
    values = ternary_unpack(a, None, columns, torch.int8)
    if b is not None:
        values = values * ternary_unpack(b, None, columns, torch.int8)
    return torch.stack(((values == 1).sum(1), (values == -1).sum(1)), 1)


def bitplane_pack(w_packed: Tensor, columns: int) -> Tensor:
    codes = ternary_unpack(w_packed, None, columns, torch.int8)
    blocks = torch.nn.functional.pad(codes, (0, -columns % 512)).view(len(codes), -1, 2, 256)
    # The bits of a byte of a plane: trits of the first and of the second half of a block in turn.
    trits = blocks.transpose(2, 3).flatten(2)
    weights = 2 ** torch.arange(8, device=codes.device)
    planes = [(bits.unflatten(2, (64, 8)) * weights).sum(-1) for bits in (trits != 0, trits < 0)]
    return torch.stack(planes, 2).to(torch.uint8).flatten(1)


def bitplane_matmul(a: Tensor, b: Tensor, columns: int, layout: str = "rows") -> Tensor:
    dense = ternary_unpack(a, None, columns, torch.float64)
    if layout == "rows":
        return (dense @ ternary_unpack(b, None, columns, torch.float64).t()).to(torch.int32)
    bits = (b[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=b.device) & 1).view(
        len(b), b.shape[1] // 128, 2, 256, 2
    )
    trits = (bits[:, :, 0] * (1 - 2 * bits[:, :, 1].double())).transpose(2, 3).flatten(1)[:, :columns]
    return (dense @ trits.t()).to(torch.int32)
