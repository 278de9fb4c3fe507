"""What torch.vmap does with the ops: a mapped first argument is a larger batch of one call; others are a loop.

A result does not depend on its batch, so both give the bits of separate calls. Without a rule torch loops over every
call and warns that it does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Result = tuple[Tensor | tuple[Tensor, ...], Any]
_LINEAR = (
    "ternary_embedding",
    "ternary_linear_packed",
    "ternary_linear_w2a8",
    "ternary_linear",
    "ternary_linear_ste",
    "act_quantize",
    "hadamard",
    "block_linear",
    "half_linear",
    "linear_i8",
    "trit_depth_linear",
)
_IN_PLACE = ("rotary_store",)  # refused: vmap has no rule for what is written to
_CONV = ("ternary_conv2d_packed", "ternary_conv2d")


def _is_mapped(dim: Any) -> bool:
    return isinstance(dim, int)  # None, or for a list of integers a list of None, where it is not


def _looped(op: Callable[..., Any], size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> _Result:
    if size == 0:
        raise ValueError(f"vmap maps {op} over no element, and only x may be mapped so")
    calls = [
        op(*(v.select(dim, i) if _is_mapped(dim) else v for v, dim in zip(arguments, in_dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(calls[0], tuple):
        return tuple(torch.stack(results) for results in zip(*calls, strict=True)), (0,) * len(calls[0])
    return torch.stack(calls), 0


def _rule(op: Callable[..., Any], batch: bool, flatten: bool) -> Callable[..., _Result]:
    """``batch``: the first argument may have further dimensions; ``flatten``: only if they are one."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> _Result:
        if not batch or any(map(_is_mapped, in_dims[1:])):
            return _looped(op, info.batch_size, in_dims, arguments)
        x = arguments[0].movedim(in_dims[0], 0)
        y = op(x.flatten(0, 1) if flatten else x, *arguments[1:])
        if flatten:
            y = y.unflatten(0, x.shape[:2])
        return (y, (0,) * len(y)) if isinstance(y, tuple) else (y, 0)

    return rule


def register() -> None:
    """Gives every op its rule; those that are not named above take matrices alone."""
    from bittorch import _C

    matrix = {str(row["op"]) for row in _C.kernels()} - {*_LINEAR, *_CONV, *_IN_PLACE}
    for names, batch, flatten in ((_LINEAR, True, False), (_CONV, True, True), (matrix, False, False)):
        for name in names:
            op = getattr(torch.ops.bittorch, name).default
            torch.library.register_vmap(f"bittorch::{name}", _rule(op, batch, flatten))
