"""The layers that the parallel styles make: a process's share of a packed layer, or of one that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from bittorch import ops
from bittorch.distributed.products import copied, gather, gathered_outputs, row_parallel_linear
from bittorch.nn import TernaryLinear, TernaryLinearInference
from bittorch.nn.parts import check_not_sharded, narrowed
from bittorch.nn.ternary_activations import as_autocast
from bittorch.nn.ternary_linear_infer import check_width
from bittorch.quant import learned
from bittorch.quant.ternary import no_trits


class Share:
    """What a parallel layer knows of the others."""

    mesh: DeviceMesh

    @property
    def group(self) -> torch.distributed.ProcessGroup:
        """The processes that have the other shares."""
        return self.mesh.get_group()

    def share_repr(self) -> str:
        return f"process {self.mesh.get_local_rank()} of {self.mesh.size()}"


class _PackedShare(Share, TernaryLinearInference):
    """Its buffers are this process's; sizes are those of the buffers."""

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError(
            f"{self._called()} holds the share of {self.share_repr()}, which would be saved under the name of the "
            "whole; save the model before it is made parallel"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.share_repr()}"


class ColumnParallelInference(_PackedShare):
    """A `bittorch.TernaryLinearInference` with some of the outputs; made by `TernaryColwiseParallel`.

    Its input is the same in all processes. ``gather_output`` makes the output whole, else it is this process's.
    """

    gather_output: bool

    def forward(self, input: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
        y = super().forward(copied(input, self.group), norm)
        return gathered_outputs(y, self.group) if self.gather_output else y


class RowParallelInference(_PackedShare):
    """A `bittorch.TernaryLinearInference` with some of the inputs; made by `TernaryRowwiseParallel`.

    Its input is this process's columns, its output is whole: see `row_parallel_linear`. A norm is of whole rows.
    """

    def forward(self, input: Tensor, norm: nn.RMSNorm | None = None) -> Tensor:
        check_not_sharded(input, self.weight_packed)
        check_width(input, self.in_features)
        input = as_autocast(input)
        normed: dict[str, Any] = {}
        if norm is not None and self.activation_bits is not None and norm.weight is not None:
            eps = torch.finfo(input.dtype).eps if norm.eps is None else norm.eps
            normed = {"norm_weight": norm.weight, "norm_eps": eps}
        elif norm is not None:
            input = norm_of_whole(norm, input, self.mesh)
        return row_parallel_linear(
            input,
            self.weight_packed,
            self.scale,
            self.bias,
            activation_bits=no_trits(self.activation_bits, "tensor parallelism"),
            depth=self.depth,
            group=self.group,
            **normed,
        )


def norm_of_whole(norm: nn.Module, x: Tensor, mesh: DeviceMesh) -> Tensor:
    """This process's columns of the norm of whole rows; no gradient.

    Raises:
        NotImplementedError: where gradients are asked for.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise NotImplementedError("a norm of rows that are spread over processes has no gradient; use torch.no_grad()")
    whole: Tensor = norm(gather(x, -1, mesh.get_group()))
    return whole.chunk(mesh.size(), -1)[mesh.get_local_rank()].contiguous()


class _TrainingShare(Share, TernaryLinear):
    """Its parameters are `torch.distributed.tensor.DTensor`; sizes are those of the whole layer."""

    is_share = True
    dim: int

    def _local_codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Packed codes and scales of this process's share ``weight``, and what receives its gradient.

        Codes that go by values of other processes are made of the whole weight, as one process makes them.
        """
        if self.training and self.quant_lambda < 1:
            raise NotImplementedError("a parallel layer has no share of quantisation; leave quant_lambda at 1")
        rows, rank, count = narrowed(weight.detach()), self.mesh.get_local_rank(), self.mesh.size()
        granularity = self.config.granularity
        alone = granularity == "group" if self.dim == 1 else granularity != "tensor"
        whole = rows if alone else gather(rows, self.dim, self.group)
        w_packed, scale = ops.ternary_quantize(whole, *self.config.op_args())
        if not alone:
            w_packed = w_packed.chunk(count, self.dim)[rank].contiguous()
        elif self.dim == 1:
            scale = scale.view(len(rows), -1)  # one group of this process's columns is not one of whole rows
        routed = learned.clipped(weight, scale) if self.config.ste == "clipped" else weight
        return w_packed, scale, routed

    def _whole_bias(self) -> Tensor | None:
        bias: Any = self.bias
        return None if bias is None else bias.to_local()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.share_repr()}"


class ColumnParallelTernaryLinear(_TrainingShare):
    """A `bittorch.TernaryLinear` with some of the outputs; made by `TernaryColwiseParallel`."""

    dim = 0
    gather_output: bool

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _ready(self, input)
        w_packed, scale, routed = self._local_codes(weight)
        x = copied(input, self.group)
        bits = no_trits(self.config.activation_bits, "tensor parallelism") or 0
        y = ops.ternary_linear_ste(x, routed, w_packed, scale, bias, bits)
        return gathered_outputs(y, self.group) if self.gather_output else y


class RowParallelTernaryLinear(_TrainingShare):
    """A `bittorch.TernaryLinear` with some of the inputs; made by `TernaryRowwiseParallel`."""

    dim = 1

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _ready(self, input)
        w_packed, scale, routed = self._local_codes(weight)
        bits = no_trits(self.config.activation_bits, "tensor parallelism")
        return row_parallel_linear(
            as_autocast(input), w_packed, scale, bias, activation_bits=bits, group=self.group, weight=routed
        )


def _ready(layer: _TrainingShare, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """This process's weight and bias, for an input that fits."""
    weight: Any = layer.weight
    if not isinstance(weight, DTensor):
        raise TypeError(f"the weight of a parallel layer must stay a DTensor, got {type(weight).__name__}")
    if isinstance(x, DTensor):
        check_not_sharded(x, weight)
    layer._note_call()
    local = weight.to_local()
    check_width(x, local.shape[1])
    ops.check_input(x, local)
    return local, layer._whole_bias()


def check_mesh(mesh: DeviceMesh) -> None:
    """Raises ValueError for a mesh of more than one dimension."""
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names or ()
        raise ValueError(
            f"a mesh of one dimension is needed, got {mesh.ndim} {tuple(names)}; give one, such as mesh['tp']"
        )


def check_divides(what: str, size: int, mesh: DeviceMesh, multiple: int = 1, why: str = "") -> None:
    """Raises ValueError where ``size`` has no equal parts that are multiples of ``multiple``."""
    if size % (mesh.size() * multiple):
        unit = f"{mesh.size()} processes x {multiple} {why}" if multiple > 1 else f"{mesh.size()} processes"
        raise ValueError(f"{what}={size} is no multiple of {unit}; use fewer processes, or leave this layer whole")


def check_alone(layer: nn.Module) -> None:
    """Raises ValueError or TypeError for a layer that is parallel or sharded already, or cannot be."""
    if isinstance(layer, Share) or any(isinstance(p, DTensor) for p in layer.parameters(recurse=False)):
        raise ValueError(f"the layer is parallel already: {layer}; fully_shard comes after the parallel styles")
    if isinstance(layer, TernaryLinear):
        if not layer.quantize or layer.config.learned or layer.backend == "python":
            raise ValueError(
                "a TernaryLinear that learns its scale, has quantize=False or backend='python' has no parallel form; "
                f"got {layer}"
            )
        no_trits(layer.config.activation_bits, "tensor parallelism")
        if type(layer) is not TernaryLinear:
            raise TypeError(f"a parallel style takes TernaryLinear itself, got its subclass {type(layer).__name__}")
    elif type(layer) is not TernaryLinearInference:
        raise TypeError(
            f"a ternary parallel style takes a TernaryLinear or a TernaryLinearInference, got {type(layer).__name__}; "
            "torch's ColwiseParallel and RowwiseParallel take nn.Linear"
        )


def cut_rows(layer: TernaryLinearInference, rows: Tensor, mesh: DeviceMesh, gather_output: bool = False) -> None:
    """Leaves a packed layer these outputs, in this order; a plane's with a depth."""
    planes = layer.depth

    def of_planes(t: Tensor) -> Tensor:
        return t.unflatten(0, (planes, -1))[:, rows].flatten(0, 1).contiguous()

    layer.weight_packed = of_planes(layer.weight_packed)
    if len(layer.scale) > 1:
        layer.scale = of_planes(layer.scale)
    if layer.bias is not None:
        layer.bias = layer.bias[rows].clone()
    layer.out_features = len(rows)
    _become(layer, ColumnParallelInference, mesh, gather_output=gather_output)


def cut_columns(layer: TernaryLinearInference, mesh: DeviceMesh) -> None:
    """Leaves a packed layer its share of the inputs."""
    rank, count = mesh.get_local_rank(), mesh.size()
    layer.weight_packed = layer.weight_packed.chunk(count, 1)[rank].clone()
    if layer.scale.dim() == 2:
        layer.scale = layer.scale.chunk(count, 1)[rank].clone()
    layer.in_features //= count
    _become(layer, RowParallelInference, mesh)


def share_parameters(layer: TernaryLinear, dim: int, mesh: DeviceMesh, gather_output: bool = False) -> None:
    """Makes the parameters of a layer that trains DTensors, whose whole values are those of the first process."""
    bias, weight = layer.bias, layer.weight
    layer.weight = _distributed(weight, mesh, Shard(dim))
    if bias is not None:
        layer.bias = _distributed(bias, mesh, Replicate() if dim else Shard(0))
    if dim:
        _become(layer, RowParallelTernaryLinear, mesh)
    else:
        _become(layer, ColumnParallelTernaryLinear, mesh, gather_output=gather_output)


def _distributed(parameter: Tensor, mesh: DeviceMesh, placement: Shard | Replicate) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [placement]), parameter.requires_grad)


def _become(layer: nn.Module, kind: type, mesh: DeviceMesh, **values: Any) -> None:
    """In place: parallelize_module keeps the module that it has."""
    layer.__class__ = kind
    layer.__dict__.update(mesh=mesh, **values)
