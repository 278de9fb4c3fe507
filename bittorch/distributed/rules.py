"""How the packed ops run on `torch.distributed.tensor.DTensor`: which placements need no exchange."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

Rule = tuple[list[Placement], list[Placement | None]]  # of the output, of the inputs in order
_WHOLE, _ROWS, _COLUMNS = Replicate(), Shard(0), Shard(1)


def _where(tensor: Any, placement: Placement) -> Placement | None:
    return None if tensor is None else placement


def _of_rows(scale: Any, w_packed: Any) -> Placement:
    """Where the scales of some rows are; one for the tensor is everywhere."""
    return _WHOLE if scale.shape[0] == 1 and w_packed.shape[0] != 1 else _ROWS


def _packed(x: Any, w_packed: Any, scale: Any, bias: Any = None, variant: str = "auto") -> list[Rule]:
    last = x.ndim - 1
    rules: list[Rule] = [
        ([_WHOLE], [_WHOLE, _WHOLE, _WHOLE, _where(bias, _WHOLE), None]),
        ([Shard(last)], [_WHOLE, _ROWS, _of_rows(scale, w_packed), _where(bias, _ROWS), None]),
    ]
    rules += [([Shard(i)], [Shard(i), _WHOLE, _WHOLE, _where(bias, _WHOLE), None]) for i in range(last)]
    if bias is None and len(scale.shape) == 1 and x.shape[last] % (4 * x.mesh.size()) == 0:
        rules.append(([Partial()], [Shard(last), _COLUMNS, _WHOLE, None, None]))
    return rules


def _w2a8(
    x: Any,
    w_packed: Any,
    scale: Any,
    bias: Any = None,
    x_scale: Any = None,
    out_dtype: Any = None,
    activation_bits: int = 8,
    variant: str = "auto",
    norm_weight: Any = None,
    norm_eps: float = 1e-5,
) -> list[Rule]:
    last, norm = x.ndim - 1, _where(norm_weight, _WHOLE)
    rest = [_where(x_scale, _WHOLE), None, None, None, norm, None]
    rules: list[Rule] = [
        ([_WHOLE], [_WHOLE, _WHOLE, _WHOLE, _where(bias, _WHOLE), *rest]),
        ([Shard(last)], [_WHOLE, _ROWS, _of_rows(scale, w_packed), _where(bias, _ROWS), *rest]),
    ]
    if x_scale is None:
        rules += [([Shard(i)], [Shard(i), _WHOLE, _WHOLE, _where(bias, _WHOLE), *rest]) for i in range(last)]
    return rules


def _unpack(w_packed: Any, scale: Any, in_features: int, dtype: Any) -> list[Rule]:
    by_rows = _ROWS if scale is None else _of_rows(scale, w_packed)
    return [
        ([_WHOLE], [_WHOLE, _where(scale, _WHOLE), None, None]),
        ([_ROWS], [_ROWS, _where(scale, by_rows), None, None]),
    ]


def register() -> None:
    """Lets `bittorch.ops.ternary_linear_packed`, ``ternary_linear_w2a8`` and ``ternary_unpack`` take DTensors.

    By outputs, by tokens, and for floating activations by inputs, which leaves a ``Partial`` sum; other placements are
    exchanged first. No gradients.
    """
    namespace = torch.ops.bittorch
    for op, rule in ((namespace.ternary_linear_packed, _packed), (namespace.ternary_linear_w2a8, _w2a8)):
        register_sharding(op.default)(rule)
    register_sharding(namespace.ternary_unpack.default)(_unpack)
