"""Trained ternary models to packed ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bittorch import ops
from bittorch.nn import (
    PackedLayer,
    TernaryConv1d,
    TernaryConv1dInference,
    TernaryConv2d,
    TernaryConv2dInference,
    TernaryConvTranspose2d,
    TernaryConvTranspose2dInference,
    TernaryEmbedding,
    TernaryEmbeddingInference,
    TernaryLinear,
    TernaryLinearInference,
    call_ternary_layers,
)
from bittorch.nn.parts import narrowed
from bittorch.nn.ternary_conv2d_infer import geometry
from bittorch.nn.ternary_layer import TernaryLayer, gathered
from bittorch.utils.calls import warn_of_uncalled
from bittorch.utils.copies import check_copy, copied
from bittorch.utils.health import MOSTLY_ZERO, silent_share, warn_of_health, why_silent
from bittorch.utils.transformers_config import note_for_transformers
from bittorch.utils.wrappers import check_not_wrapped, named_layers, normal_tensors, unwrapped

_UNNAMED = ("the layer", "the model")
SkipPredicate = Callable[[str, nn.Module], bool]


def check_own_values(weight: Tensor, what: str) -> None:
    """Raises TypeError for weights that torchao and the like have quantised: they are tensors of another kind."""
    dispatches = type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    sharded_or_fake = hasattr(weight, "full_tensor") or type(weight).__name__ == "FakeTensor"
    if (is_traceable_wrapper_subclass(weight) or dispatches) and not sharded_or_fake:
        raise TypeError(
            f"{what}: its weight is a {type(weight).__name__}, a tensor subclass that holds no floating values of its "
            "own; use the model as it was before its weights were quantised"
        )


def packed_codes(layer: TernaryLayer, name: str, what: str) -> tuple[Tensor, Tensor]:
    """Packed codes and scales of a layer; ValueError, with its name and what it was wanted for, where it has none."""
    weight = layer.weight
    check_own_values(weight, f"cannot {what} {name or 'the model'}")
    try:
        if weight.is_meta:
            raise ValueError("it is on the meta device and has no weights; load them first")
        if tuple(weight.shape) != (shape := _dense_shape(layer)):
            raise ValueError(
                f"its weight is {tuple(weight.shape)} instead of {shape}; if FullyShardedDataParallel holds it, work "
                "inside `with FullyShardedDataParallel.summon_full_params(model):`"
            )
        return layer.quantize_packed()
    except ValueError as error:
        raise ValueError(f"cannot {what} {name or 'the model'}: {error}") from None


def _dense_shape(layer: TernaryLayer) -> tuple[int, ...]:
    if isinstance(layer, TernaryLinear):
        return layer.out_features, layer.in_features
    if isinstance(layer, TernaryEmbedding):
        return layer.num_embeddings, layer.embedding_dim
    assert isinstance(layer, TernaryConv1d | TernaryConv2d | TernaryConvTranspose2d)
    first, second = layer.out_channels, layer.in_channels
    if layer.transposed:
        first, second = second, first
    return first, second // layer.groups, *layer.kernel_size


def registered_beside(layer: nn.Module, own: tuple[str, ...]) -> str:
    """What a layer has registered beside its ``own`` parameters: other parameters, buffers and modules."""
    return ", ".join(repr(n) for n in (*layer._parameters, *layer._buffers, *layer._modules) if n not in own)


def stored_as(layer: TernaryLayer | PackedLayer) -> Hashable:
    """Equal for layers that store one set of codes and scales: those of one weight, quantised alike."""
    if isinstance(layer, PackedLayer):
        return id(layer.weight_packed), id(layer.scale)
    weight = layer._parameters.get("weight")  # a parametrised one is a new tensor at each look
    if weight is None:
        return id(layer)
    rows = dataclasses.replace(layer.config, activation_bits=None)  # activations are no part of what is stored
    turned = layer.groups if isinstance(layer, TernaryConvTranspose2d) else 0  # its rows are others of the same weight
    return id(weight), id(layer.weight_scale), rows, turned


def _gathers(hook: Callable[..., object]) -> bool:
    """Whether a hook is one of `fully_shard`, which gather and drop weights: export gathers them itself."""
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp.")


def _check_exportable(layer: nn.Module, kind: type[TernaryLayer], name: str) -> None:
    if not isinstance(layer, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {type(layer).__name__}")
    for method in ("forward", "__call__"):
        if getattr(type(layer), method) is not getattr(kind, method) and not layer.is_share:
            raise TypeError(
                f"cannot export {name}: {type(layer).__name__} overrides {method}, which packing would lose"
            )
    if "forward" in vars(layer):
        raise ValueError(f"cannot export {name}: its forward was replaced, which packing would lose; put it back first")
    if any(not _gathers(hook) for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())):
        raise ValueError(f"cannot export {name}: it has forward hooks, which packing would lose; remove them first")
    if extra := registered_beside(layer, ("weight", "bias", "weight_scale", "parametrizations")):
        raise ValueError(f"cannot export {name}: it has {extra} beside its weight and bias, which packing would lose")


def _filled(twin: PackedLayer, layer: TernaryLayer, name: str) -> PackedLayer:
    """``twin``, made on the meta device, with the codes, scale and bias of ``layer``."""
    with normal_tensors():
        twin.weight_packed, twin.scale = packed_codes(layer, name, "export")
        if layer.bias is not None:
            twin.bias = narrowed(gathered(layer.bias).detach().clone())
    twin.name, twin.weight_dtype = ("" if name in _UNNAMED else name), layer.weight.dtype
    return twin.train(layer.training)


def _plain(plain: nn.Module, layer: TernaryLayer) -> nn.Module:
    """``plain``, made on the meta device, with copies of the parameters of ``layer``."""
    with normal_tensors():
        plain.weight = nn.Parameter(gathered(layer.weight).detach().clone(), layer.weight.requires_grad)
        if layer.bias is not None:
            plain.bias = nn.Parameter(gathered(layer.bias).detach().clone(), layer.bias.requires_grad)
    return plain.train(layer.training)


# Of each kind the dense layer, which it becomes with quantize=False, and the packed one.
_KINDS: dict[type[TernaryLayer], tuple[type[nn.Module], type[PackedLayer]]] = {
    TernaryLinear: (nn.Linear, TernaryLinearInference),
    TernaryConv1d: (nn.Conv1d, TernaryConv1dInference),
    TernaryConv2d: (nn.Conv2d, TernaryConv2dInference),
    TernaryConvTranspose2d: (nn.ConvTranspose2d, TernaryConvTranspose2dInference),
    TernaryEmbedding: (nn.Embedding, TernaryEmbeddingInference),
}


def _exported(layer: TernaryLayer, name: str) -> nn.Module:
    """The packed form of a layer of any kind; the dense one for ``quantize=False``."""
    kind = next((kind for kind in _KINDS if isinstance(layer, kind)), TernaryLinear)
    _check_exportable(layer, kind, name)
    dense, packed = _KINDS[kind]
    if isinstance(layer, TernaryEmbedding):
        table: dict[str, Any] = {"num_embeddings": layer.num_embeddings, "embedding_dim": layer.embedding_dim}
        if layer.quantize:
            twin = _filled(packed(**table, device="meta"), layer, name)
            twin.weight_dtype = narrowed(layer.weight[:0]).dtype  # of the rows that it gives
            return twin
        table |= {"padding_idx": layer.padding_idx, "scale_grad_by_freq": layer.scale_grad_by_freq}
        return _plain(dense(**table, device="meta"), layer)
    if isinstance(layer, TernaryLinear):
        sizes: dict[str, Any] = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        assert isinstance(layer, TernaryConv1d | TernaryConv2d | TernaryConvTranspose2d)
        sizes = {"in_channels": layer.in_channels, "out_channels": layer.out_channels, **geometry(layer)}
    sizes["bias"] = layer.bias is not None
    if not layer.quantize:
        return _plain(dense(**sizes, device="meta"), layer)
    return _filled(packed(**sizes, activation_bits=layer.config.activation_bits, device="meta"), layer, name)


def export_linear_to_inference(linear: TernaryLinear, name: str = _UNNAMED[0]) -> nn.Module:
    """The packed form of one trained layer; ``linear`` is not touched.

    The result gives, bit for bit, what ``linear.eval()`` gives with backend ``auto`` or ``cuda``.

    Args:
        linear: the trained layer, on any device.
        name: what error messages call it.

    Returns:
        A `TernaryLinearInference` on the layer's device; for ``quantize=False`` a `torch.nn.Linear`.

    Raises:
        TypeError: ``linear`` is not a `TernaryLinear`, or a subclass with a forward of its own.
        ValueError: its weight holds NaN or Inf, or is on the meta device; method ttq; it has forward hooks, a
            forward that was set on the layer alone, or parameters, buffers and modules beside weight and bias.
    """
    _check_exportable(linear, TernaryLinear, name)
    return _exported(linear, name)


def export_conv2d_to_inference(conv: TernaryConv2d, name: str = _UNNAMED[0]) -> nn.Module:
    """The packed form of one trained convolution; ``conv`` is not touched.

    As `export_linear_to_inference`: the result is a `TernaryConv2dInference`, or a `torch.nn.Conv2d` for
    ``quantize=False``, and the same things are refused.
    """
    _check_exportable(conv, TernaryConv2d, name)
    return _exported(conv, name)


def check_called(model: nn.Module, packed: dict[int, nn.Module]) -> None:
    """Raises where torch takes the weight of a layer without calling it, or a module needs its masters; warns where
    the model seems to take one."""
    for name, parent in named_layers(model):
        if isinstance(parent, nn.MultiheadAttention) and id(parent.out_proj) in packed:
            where = f"{name}.out_proj" if name else "out_proj"
            raise ValueError(
                f"{where} is ternary, but {type(parent).__name__} reads its weight without calling it, so it would "
                "not run as trained; leave it an nn.Linear"
            )
        why = getattr(parent, "refuses_export", "")
        if why and any(id(child) in packed for child in parent.children()):
            raise ValueError(f"cannot export {name or 'the model'}: {why}")
    warn_of_uncalled(model, stacklevel=4)


def export_for_inference(model: nn.Module, skip: SkipPredicate | None = None) -> nn.Module:
    """A copy of the model in eval mode with every ternary layer packed (`TernaryLinear`, the convolutions,
    `TernaryEmbedding`); the model itself is not touched.

    A module that appears in several places stays one module, and tied weights share their codes. Everything else is
    copied as it is. The copy leaves out wrappers of `torch.compile`, AveragedModel and activation checkpointing, and
    has the names of the model inside them. With DistributedDataParallel export ``model.module``. With
    FullyShardedDataParallel (FSDP1) export inside ``summon_full_params``. With ``fully_shard`` (FSDP2) export before
    sharding, or after loading the full state dict into a plain model. In inference mode too, the tensors are normal.

    Args:
        model: the trained model, in any mode and on any device.
        skip: ``skip(name, module)`` returns True for layers to leave as they are.

    Returns:
        The packed model, with ``torch.equal(model.eval()(x), export_for_inference(model)(x))`` for layers of backend
        ``auto`` and ``cuda``.

    Raises:
        TypeError: the model is wrapped so that its weights are not whole, or a layer overrides forward, or a weight is
            a tensor subclass such as those of torchao.
        ValueError: a weight holds NaN or Inf, or is on the meta device; a layer is of method ttq, has forward hooks or
            parameters, buffers and modules of its own, or is the ``out_proj`` of `torch.nn.MultiheadAttention`; the
            ``forward`` of a module was replaced by a function that calls the model given, as a decorator or
            `torch.compile` of ``model.forward`` makes it. The message names the layer or module.

    Warns:
        UserWarning: there is no ternary layer to pack, or all have ``quantize=False``; layers that were never called
            though others were; layers with hardly a code but 0; less than half of the weights that multiply activations
            are ternary; other functions that hold parts of the model.
    """
    check_not_wrapped(
        model,
        "export model.module",
        "export before that, or load its full state dict into a plain model",
        "export inside `with FullyShardedDataParallel.summon_full_params(model):`",
    )
    check_copy(unwrapped(model), "export")
    with normal_tensors():
        twins = _twins(model, skip)
        check_called(model, twins)
        packed = copied(unwrapped(model), twins).eval()
        call_ternary_layers(packed)
    warn_of_health(model, _silent(model, twins), stacklevel=3)
    if not any(isinstance(twin, PackedLayer) for twin in twins.values()):
        why = (
            f"all {len(twins)} ternary layers to export have quantize=False and stay in full precision; if they are to "
            "be packed, set quantize=True on them first"
            if twins
            else "the model has no ternary layer to export (or skip left out all of them); the result is a plain copy"
        )
        warnings.warn(why, stacklevel=2)
    note_for_transformers(packed)
    return packed


def _silent(model: nn.Module, twins: dict[int, nn.Module]) -> dict[str, str]:
    """What to warn of each layer that is packed with hardly a code but 0."""
    found: dict[str, str] = {}
    for name, module in named_layers(model):
        twin = twins.get(id(module))
        if isinstance(twin, PackedLayer) and isinstance(module, TernaryLayer):
            codes = ops.ternary_unpack(twin.weight_packed, None, twin.columns, torch.int8)
            if (share := silent_share(codes, module._filters(gathered(module.weight).detach()))) > MOSTLY_ZERO:
                found[name] = why_silent(module, share)
    return found


def _twins(model: nn.Module, skip: SkipPredicate | None) -> dict[int, nn.Module]:
    """What each ternary layer becomes, by the identity of the layer."""
    twins: dict[int, nn.Module] = {}
    stored: dict[Hashable, PackedLayer] = {}
    for name, module in named_layers(model):
        if isinstance(module, TernaryLayer) and not (skip and skip(name, module)):
            twin = twins[id(module)] = _exported(module, name or "the model")
            if isinstance(twin, PackedLayer):
                first = stored.setdefault(stored_as(module), twin)
                twin.weight_packed, twin.scale = first.weight_packed, first.scale
    return twins
