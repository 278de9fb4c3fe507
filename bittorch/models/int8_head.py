"""A head in int8 rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.models.blocks import BlockLinear
from bittorch.models.memory import new_tensor

ROWS = 256  # quantised at once: their floats stay in a cache
LET_GO = 1 << 13  # rows after which the pages of what was read are let go
LEAST = 1e-5 / 127  # the scale that act_quantize gives to every smaller row


class Int8Head(nn.Module):
    """``logits[r] = (q . codes[r]) * (x_scale * scale[r])`` with the 16-bit digits q of x: `bittorch.ops.linear_i8`.

    ``scale[r]`` is a 127th of the largest magnitude of row r of the exact head, and ``codes[r]`` its weights over
    that, rounded half to even. A row of Gaussian weights moves by 1 % (relative L2). Sums are exact integers, so the
    logits of a token do not depend on its batch.

    Args:
        exact: the head as it is stored. It gives the gradients, and is what is saved.
        let_go: called now and then while the rows are read, and at the end.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, exact: BlockLinear | nn.Linear, let_go: Callable[[], None]) -> None:
        super().__init__()
        self.exact = exact
        self._quantise(let_go)
        self.register_load_state_dict_post_hook(_follow)

    def _quantise(self, let_go: Callable[[], None]) -> None:
        exact = self.exact
        held = exact.blocks if isinstance(exact, BlockLinear) else exact.weight.detach()
        rows = exact.weight.dense_rows(ROWS) if isinstance(exact, BlockLinear) else held.split(ROWS)
        shape = exact.out_features, exact.in_features
        codes = new_tensor(shape, torch.int8) if held.is_cpu else held.new_empty(shape, dtype=torch.int8)
        scale = held.new_empty(exact.out_features, dtype=torch.float32)
        for begin, part in zip(range(0, len(scale), ROWS), rows, strict=True):
            if begin % LET_GO == 0:
                let_go()
            found = _int8(part)
            codes[begin : begin + ROWS], scale[begin : begin + ROWS] = found[0], found[1].squeeze(-1)
        let_go()
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            exact: Tensor = self.exact(x)
            return exact
        return ops.linear_i8(x, self.codes, self.scale)

    def extra_repr(self) -> str:
        return f"{self.exact.in_features}, {self.exact.out_features}"


def _follow(head: Int8Head, _: object) -> None:
    """Makes the rows again, of an exact head that ``load_state_dict`` has changed."""
    head._quantise(lambda: None)


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales ``(rows, 1)``."""
    codes, scale = ops.act_quantize(rows, 8)
    if bool((scale <= LEAST).any()):
        floats = rows.float()
        scale = floats.abs().amax(-1, True) / 127
        codes = (floats / torch.where(scale > 0, scale, 1)).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scale
