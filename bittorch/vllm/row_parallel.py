"""Products with quantised activations whose columns are spread over vLLM's processes."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.distributed.parallel_state import get_tp_group

from bittorch.distributed.products import row_parallel_linear
from bittorch.nn import TernaryLinearInference


def row_parallel(x: Tensor, layer: TernaryLinearInference) -> Tensor:
    """`bittorch.distributed.row_parallel_linear` of this process's columns ``x`` and its share of the weights.

    Every process gets the whole result, with the bits of one process where each row has one scale.
    """
    y: Tensor = torch.ops.bittorch_vllm.row_parallel(
        x, layer.weight_packed, layer.scale, layer.bias, layer.activation_bits, layer.depth
    )
    return y


@torch.library.custom_op("bittorch_vllm::row_parallel", mutates_args=())  # opaque to vLLM's compiler
def _row_parallel(
    x: Tensor, weight_packed: Tensor, scale: Tensor, bias: Tensor | None, bits: int, depth: int
) -> Tensor:
    group = get_tp_group().device_group
    return row_parallel_linear(x, weight_packed, scale, bias, activation_bits=bits, depth=depth, group=group)


@_row_parallel.register_fake
def _(x: Tensor, weight_packed: Tensor, scale: Tensor, bias: Tensor | None, bits: int, depth: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_packed.shape[0] // depth))
