"""Batch norms behind packed layers, made part of their scales and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from bittorch.nn import PackedLayer, TernaryConv1dInference, TernaryEmbeddingInference
from bittorch.nn.ternary_conv2d_infer import PackedConvolution
from bittorch.utils.wrappers import normal_tensors, unwrapped


def _is_product(layer: nn.Module | None) -> bool:
    """Whether a layer has scales and a bias for each channel; the rows of a table are no channels."""
    return isinstance(layer, PackedLayer) and not isinstance(layer, TernaryEmbeddingInference)


def _norms(layer: PackedLayer) -> tuple[type[nn.Module], ...]:
    """The batch norms that can follow a layer."""
    images = isinstance(layer, PackedConvolution) and not isinstance(layer, TernaryConv1dInference)
    return (nn.BatchNorm2d if images else nn.BatchNorm1d), nn.SyncBatchNorm


class FoldedBatchNorm(nn.Module):
    """The place of a batch norm that is part of the packed layer before it; returns its input.

    Args:
        num_features: channels of the batch norm.
        rows: whether a linear layer stands before it. The features of its output are then the last dimension, and the
            channels of a batch norm only where there are two.
    """

    def __init__(self, num_features: int, rows: bool) -> None:
        super().__init__()
        self.num_features, self.rows = num_features, rows

    def forward(self, input: Tensor) -> Tensor:
        if self.rows:
            torch._assert(
                input.dim() == 2, "a batch norm that was folded into a linear layer takes inputs (samples, features)"
            )
        return input

    def extra_repr(self) -> str:
        return f"{self.num_features}, rows={self.rows}"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PackedLayer | FoldedBatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _found(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of packed layers and of the batch norms that alone take their outputs."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the forward does with a proxy
        raise ValueError(
            f"the model cannot be traced, so its batch norms must be named, such as pairs={{'conv1': 'bn1'}}: {error}"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls: dict[int, int] = {}
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    for node in nodes:
        calls[id(modules[node.target])] = calls.get(id(modules[node.target]), 0) + 1
    for node in nodes:
        norm, source = modules[node.target], node.args[0] if node.args else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(source, fx.Node):
            continue
        layer = modules.get(source.target) if source.op == "call_module" else None
        once = calls[id(norm)] == 1 and layer is not None and calls[id(layer)] == 1
        if once and _is_product(layer) and len(source.users) == 1:
            yield str(source.target), str(node.target)


def _check_pair(layer: nn.Module, norm: nn.Module, names: tuple[str, str]) -> None:
    """Raises where a batch norm is no part that the layer before it can take."""
    first, second = names
    if not isinstance(layer, PackedLayer):
        raise TypeError(f"{first} is a {type(layer).__name__} and not packed; export the model first")
    if not _is_product(layer) or type(norm) not in _norms(layer):
        raise TypeError(f"{second} is a {type(norm).__name__}, and no batch norm that can follow {first}")
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    rows = layer.out_channels if isinstance(layer, PackedConvolution) else layer.weight.shape[0]
    if norm.num_features != rows:
        raise ValueError(f"{second} has {norm.num_features} channels, but {first} gives {rows}")
    if norm.training:
        raise ValueError(f"{second} is in training mode, where it takes the statistics of the batch; call model.eval()")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{second} keeps no running statistics, so it depends on the batch and cannot be folded")
    if any((*m._forward_hooks, *m._forward_pre_hooks) for m in (layer, norm)):
        raise ValueError(f"{first} or {second} has forward hooks, which would see other values; remove them first")


def _fold(layer: PackedLayer, norm: nn.modules.batchnorm._BatchNorm, names: tuple[str, str]) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * factor
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    rows = factor.repeat(layer.depth)
    scale = layer.scale.double()
    scale = (scale * rows if scale.dim() == 1 else scale * rows[:, None]).float()
    if not bool(torch.isfinite(scale).all() and torch.isfinite(bias.float()).all()):
        raise ValueError(f"{names[1]} has statistics or weights that are not finite, or too large for {names[0]}")
    layer.scale, layer.bias = scale, bias.float()


def fold_batch_norm_(model: nn.Module, pairs: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Makes the batch norms behind packed layers part of these, in place.

    ``scale'[r, g] = scale[r, g] * f[r]`` and ``bias'[r] = (bias[r] - mean[r]) * f[r] + beta[r]`` with
    ``f[r] = gamma[r] / sqrt(var[r] + eps)``, computed in float64 and rounded once to float32. The codes stay as they
    are. In real numbers the folded layer computes exactly what layer and batch norm did, for a scale per row, group or
    tensor (which becomes one per row). In floating point each row differs by the rounding of its scale and its bias and
    by one operation less, relative errors of about 1e-7; the outputs do not keep their bits.

    Folding before packing, as `torch.nn.utils.fusion` does with dense layers, would quantise other weights: training
    layers refuse it.

    Args:
        model: what `bittorch.export_for_inference` returned, in eval mode.
        pairs: names of layers to those of the batch norms behind them. Default: all pairs that `torch.fx` finds, where
            layer and norm are called once and no one else takes the output of the layer. Linear layers take inputs
            ``(samples, features)``.

    Returns:
        The pairs of names that were folded. A ``FoldedBatchNorm`` stands where each batch norm stood.

    Raises:
        TypeError: a name of ``pairs`` is no packed layer, or no batch norm that can follow it.
        ValueError: a model that cannot be traced; a batch norm in training mode, without running statistics, of another
            size, or not finite; forward hooks; a name of ``pairs`` that stands for several places; one batch norm
            behind two layers.
        AttributeError: a name of ``pairs`` that the model has not.

    >>> packed = bittorch.export_for_inference(model)
    >>> print(bittorch.utils.fold_batch_norm_(packed))
    """
    model = unwrapped(model)
    found = list(_found(model) if pairs is None else pairs.items())
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    taken: dict[int, str] = {}
    for names in found:
        layer, norm = (model.get_submodule(name) for name in names)
        if pairs is not None and (several := [n for m in (layer, norm) for n in places[id(m)][1:]]):
            raise ValueError(f"{names[0]} or {names[1]} also stands at {several[0]}, which may be called elsewhere")
        _check_pair(layer, norm, names)
        if (other := taken.setdefault(id(norm), names[0])) != names[0]:
            raise ValueError(f"{names[1]} is named behind {other} and {names[0]}, but one layer alone can take it")
    with normal_tensors(), torch.no_grad():
        for names in found:
            layer, norm = (model.get_submodule(name) for name in names)
            assert isinstance(layer, PackedLayer)
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            _fold(layer, norm, names)
            for place in places[id(norm)]:
                parent, _, last = place.rpartition(".")
                folded = FoldedBatchNorm(norm.num_features, not isinstance(layer, PackedConvolution))
                setattr(model.get_submodule(parent), last, folded.eval())
    return found
