"""Parallel styles of ternary layers, for `torch.distributed.tensor.parallel.parallelize_module`."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from bittorch.distributed import layers
from bittorch.nn import TernaryLinear, TernaryLinearInference
from bittorch.quant.ternary import no_trits


class TernaryColwiseParallel(ParallelStyle):
    """Each process has some of the outputs of a ternary layer: rows of the weight, their scales and biases.

    The layer may be a `bittorch.TernaryLinear`, which then trains on `torch.distributed.tensor.DTensor` parameters, or
    a `bittorch.TernaryLinearInference`, which is cut. The input is the same in all processes, and each output has the
    bits that it has in one process. The gradient of the input is summed over processes.

    Args:
        gather_output: make the output whole in every process; else it is this process's share.

    Raises:
        ValueError: on use: out_features that the processes do not divide, a mesh of more than one dimension, a layer
            that is parallel already, one that learns its scale or does not quantise, one that trains with
            ``activation_bits="ternary"``.
        TypeError: on use: another module.

    Source: Shoeybi et al. 2019 (Megatron-LM).
    """

    def __init__(self, *, gather_output: bool = False) -> None:
        super().__init__()
        self.gather_output = gather_output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layers.check_mesh(device_mesh)
        layers.check_alone(module)
        assert isinstance(module, TernaryLinear | TernaryLinearInference)
        layers.check_divides("out_features", module.out_features, device_mesh)
        if isinstance(module, TernaryLinear):
            layers.share_parameters(module, 0, device_mesh, self.gather_output)
        else:
            size = module.out_features // device_mesh.size()
            begin = device_mesh.get_local_rank() * size
            rows = torch.arange(begin, begin + size, device=module.weight_packed.device)
            layers.cut_rows(module, rows, device_mesh, self.gather_output)
        return module


class TernaryRowwiseParallel(ParallelStyle):
    """Each process has some of the inputs of a ternary layer: whole bytes of its packed rows.

    The input is this process's share of the columns, as the output of `TernaryColwiseParallel` is; the output is whole
    in every process. With ``activation_bits`` and without groups it has the bits that one process computes
    (`row_parallel_linear`). The bias is added once.

    Raises:
        ValueError: on use: in_features that is no multiple of 4 for each process, groups that would lie on two
            processes, ``activation_bits="ternary"``, and all that `TernaryColwiseParallel` refuses.
        TypeError: on use: another module.

    Source: Shoeybi et al. 2019 (Megatron-LM).
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layers.check_mesh(device_mesh)
        layers.check_alone(module)
        assert isinstance(module, TernaryLinear | TernaryLinearInference)
        check_columns(module, device_mesh)
        if isinstance(module, TernaryLinear):
            layers.share_parameters(module, 1, device_mesh)
        else:
            layers.cut_columns(module, device_mesh)
        return module


def check_columns(module: TernaryLinear | TernaryLinearInference, mesh: DeviceMesh) -> None:
    """Raises ValueError for ternary activations and for columns without equal shares of whole bytes and groups."""
    bits = module.config.activation_bits if isinstance(module, TernaryLinear) else module.activation_bits
    no_trits(bits, "tensor parallelism")
    layers.check_divides("in_features", module.in_features, mesh, 4, "codes a byte")
    if isinstance(module, TernaryLinear):
        grouped = module.config.granularity == "group"
        group = module.config.grouping[1] if grouped else 0
    else:
        group = module.in_features // module.groups if module.groups > 1 else 0
    if group:
        layers.check_divides("in_features", module.in_features, mesh, group, "columns of a group")
