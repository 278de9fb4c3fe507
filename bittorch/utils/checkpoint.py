"""Packed models on disk: one safetensors file, never pickle.

Keys are those of ``state_dict()``: ``<module>.weight_packed``, ``.scale``, ``.bias``, and every other tensor of the
model. The metadata is ``{"format": "pt", "bittorch": json}`` with the version, the layout, the configuration of each
packed layer, the aliases of tensors that stand in several places and are stored once, and the names of ``buffers``
that are no part of ``state_dict()``: a model on the meta device gets them from the file, any other keeps its own.
``folded`` names batch norms that `fold_batch_norm_` made part of the layer before them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bittorch.nn import (
    PackedLayer,
    TernaryConv1dInference,
    TernaryConv2dInference,
    TernaryConvTranspose2dInference,
    TernaryEmbeddingInference,
    TernaryLinearInference,
    call_ternary_layers,
)
from bittorch.nn.ternary_conv2d_infer import PackedConvolution, geometry
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.batch_norm import FoldedBatchNorm
from bittorch.utils.checkpoint_fit import check_fits, folded_norm, sizes_text
from bittorch.utils.safetensors_file import write_safetensors
from bittorch.utils.transformers_config import note_for_transformers
from bittorch.utils.wrappers import normal_tensors, unwrapped

FORMAT_VERSION = 1
LAYOUT = "2bit-lsb-first-rows"


_CONVOLUTIONS: dict[str, type[PackedConvolution]] = {
    "conv1d": TernaryConv1dInference,
    "conv2d": TernaryConv2dInference,
    "conv_transpose2d": TernaryConvTranspose2dInference,
}
_Shared = dict[tuple[tuple[tuple[str, Any], ...], tuple[str, ...]], PackedLayer]  # by configuration and tensors
_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def layer_config(layer: PackedLayer) -> dict[str, Any]:
    """The arguments of the layer's class; the kind says which, and a layer without one is linear."""
    common: dict[str, Any] = {"bias": layer.bias is not None, "activation_bits": layer.activation_bits}
    if layer.weight_dtype in _DTYPES:  # what `weight.dtype` says; float32 is left out, as older versions wrote it
        common["weight_dtype"] = _DTYPES[layer.weight_dtype]
    if isinstance(layer, PackedConvolution):
        sizes = {"in_channels": layer.in_channels, "out_channels": layer.out_channels, **geometry(layer)}
        kind = next(kind for kind, cls in _CONVOLUTIONS.items() if isinstance(layer, cls))
        return {"kind": kind, **sizes, "scale_groups": layer.scale_groups, **common}
    planes = {"depth": layer.depth} if layer.depth != 1 else {}  # without it the file is one that older versions read
    if isinstance(layer, TernaryEmbeddingInference):
        sizes = {"num_embeddings": layer.num_embeddings, "embedding_dim": layer.embedding_dim}
        del common["bias"], common["activation_bits"]
        return {"kind": "embedding", **sizes, "groups": layer.groups, **planes, **common}
    assert isinstance(layer, TernaryLinearInference)
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {**sizes, "groups": layer.groups, **planes, **common}


def _split_aliases(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and for each name of a stored tensor's twin the name that it is stored under."""
    stored: dict[str, Tensor] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and identity in first_name:
            aliases[name] = first_name[identity]
        else:
            first_name[identity] = name
            # A copy, because safetensors refuses tensors that share storage in other ways.
            stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return stored, aliases


def save_ternary_inference_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a packed model; a failure or a crash leaves either the old file or the whole new one.

    Args:
        model: what `bittorch.export_for_inference` returned.
        path: the file, conventionally ``*.safetensors``.

    Raises:
        ValueError: the model has no packed layer, is on the meta device, or has state that is not tensors.
        OSError: the file cannot be written.
    """
    model = unwrapped(model)
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedLayer)}
    training = [name for name, module in model.named_modules() if isinstance(module, TernaryLayer)]
    if not layers:
        hint = "call export_for_inference(model) first" if training else "it has no ternary layers"
        raise ValueError(f"the model holds no packed layer; {hint}")
    state = model.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{others[0]} is a {type(state[others[0]]).__name__}; a checkpoint holds tensors only")
    if on_meta := [name for name, tensor in state.items() if tensor.device.type == "meta"]:
        raise ValueError(f"{on_meta[0]} is on the meta device and has no values to save")
    named = model.named_buffers(remove_duplicate=False)
    buffers = {name: buffer for name, buffer in named if name not in state and not buffer.is_meta}
    stored, aliases = _split_aliases(state | buffers)
    header = {
        "version": FORMAT_VERSION,
        "layout": LAYOUT,
        "layers": {name: layer_config(layer) for name, layer in layers.items()},
        "aliases": aliases,
    }
    if buffers:
        header["buffers"] = sorted(buffers)
    folded = [(name, m) for name, m in model.named_modules() if isinstance(m, FoldedBatchNorm)]
    if folded:
        header["folded"] = {name: {"num_features": m.num_features, "rows": m.rows} for name, m in folded}
    write_safetensors(path, stored, {"format": "pt", "bittorch": json.dumps(header)})


def read_header(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    """The 'bittorch' metadata of a file: layers, aliases, buffers, folded. ValueError for others, and newer ones."""
    if not metadata or "bittorch" not in metadata:
        raise ValueError(f"{path} is a safetensors file but not a bittorch checkpoint: it has no 'bittorch' metadata")
    try:
        header = json.loads(metadata["bittorch"])
        version, layout = header["version"], header["layout"]
        layers, aliases = dict(header["layers"]), dict(header["aliases"])
        buffers, folded = list(header.get("buffers", ())), dict(header.get("folded", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has damaged 'bittorch' metadata: {error!r}") from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}, this bittorch reads version {FORMAT_VERSION}; update bittorch"
        )
    if layout != LAYOUT:
        raise ValueError(f"{path} has weight layout {layout!r}, this bittorch reads {LAYOUT!r}")
    return {"layers": layers, "aliases": aliases, "buffers": buffers, "folded": folded}


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = read_header(file.metadata(), path)
            # Copies, because the tensors are views of the file: who overwrites it would change a running model.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    for name, target in header["aliases"].items():
        if not isinstance(target, str) or target not in state:
            raise ValueError(f"{path} says that {name} is {target}, but holds no {target}")
        state[name] = state[target]  # no copy before it is known that the model has such a tensor
    return header, state


def layer_of(name: str, config: Any, path: Path) -> PackedLayer:
    """An empty layer on the meta device, of what `layer_config` gave; ValueError, with file and name, for other."""
    try:
        fields = dict(config)
        kind, weight_dtype = fields.pop("kind", "linear"), fields.pop("weight_dtype", None)
        layer = _of_kind(kind, fields)
        if weight_dtype is not None:
            if weight_dtype not in _DTYPES.values():
                raise ValueError(f"weight_dtype must be one of {', '.join(_DTYPES.values())}, got {weight_dtype!r}")
            layer.weight_dtype = getattr(torch, weight_dtype)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        # RuntimeError: sizes that no tensor can have; the last two: sizes of zero, pairs of another length
        raise ValueError(f"{path} has a bad configuration for layer {name!r}: {error}") from None
    layer.name = name
    return layer


def _of_kind(kind: Any, fields: dict[str, Any]) -> PackedLayer:
    if isinstance(kind, str) and kind in _CONVOLUTIONS:
        pairs = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}  # JSON has no tuples
        return _CONVOLUTIONS[kind](**{**fields, **pairs}, device="meta")
    if kind == "embedding":
        return TernaryEmbeddingInference(**fields, device="meta")
    if kind != "linear":
        raise ValueError(f"unknown kind {kind!r}; update bittorch")
    return TernaryLinearInference(**fields, device="meta")


def _build_layer(name: str, config: Any, state: dict[str, Tensor], path: Path) -> PackedLayer:
    """An empty layer of the recorded configuration, after checking that the stored tensors fit it."""
    layer = layer_of(name, config, path)
    expected = dict(layer.named_buffers())
    for key, buffer in expected.items():
        full = f"{name}.{key}" if name else key
        if full not in state:
            raise ValueError(f"{path} describes layer {name!r} but holds no tensor {full!r}")
        if state[full].shape != buffer.shape:
            raise ValueError(
                f"{path}: {full} must be {tuple(buffer.shape)} for {sizes_text(layer)}, got {tuple(state[full].shape)}"
            )
        _check_floating(full, buffer, state[full], path)
        if state[full].dtype == torch.float64:
            raise ValueError(f"{path}: {full} must be float32, float16 or bfloat16, got {state[full].dtype}")
        if key == "bias" and not bool(torch.isfinite(state[full]).all()):
            raise ValueError(f"{path}: {full} holds NaN or Inf; the file is damaged")
    return layer


def _check_floating(name: str, wanted: Tensor, given: Tensor, path: Path) -> None:
    """Raises where integers stand for floats or the other way round; the floating dtypes may differ."""
    if wanted.is_floating_point() != given.is_floating_point():
        raise ValueError(f"{path}: {name} must be of a dtype like {wanted.dtype}, got {given.dtype}")


def _put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> nn.Module:
    """Sets a submodule or parameter; the root is replaced by returning the module."""
    if not name:
        assert isinstance(value, nn.Module)
        return value
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, value)
    return model


def load_ternary_inference_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> nn.Module:
    """Fills a model from a file of `save_ternary_inference_checkpoint`.

    Args:
        model: a model of the same architecture, trained or not, packed or not, also on the meta device. Its linear
            layers, convolutions and embeddings, ternary or not, that the file holds packed are replaced in place.
            Buffers outside its state dict come from the file where they are on the meta device.
        path: the file.
        device: where the tensors go.

    Returns:
        The model, in eval mode; another object only where the model itself is a single layer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole bittorch checkpoint, a newer version, a header that its tensors contradict, code 11, or
            a model of another architecture. The model is changed only after the file has been checked.
    """
    path, given, model = Path(path), model, unwrapped(model)
    with normal_tensors():
        loaded = _filled(model, path, str(device))
    return given if loaded is model else loaded


def _filled(model: nn.Module, path: Path, device: str) -> nn.Module:
    header, state = _read(path, device)
    buffers = _buffers_of(header, state, path)
    layers: dict[str, PackedLayer] = {}
    shared: _Shared = {}
    for name, config in header["layers"].items():
        layer = _build_layer(name, config, state, path)
        keys = [f"{name}.{key}" if name else key for key, _ in layer.named_buffers()]
        # One layer in several places has all its tensors in common; layers may also share these, or some, and differ.
        tensors = tuple(header["aliases"].get(key, key) for key in keys)
        layers[name] = shared.setdefault((tuple(layer_config(layer).items()), tensors), layer)
        check_fits(model, name, layers[name], path)
    for layer, name in {layer: name for name, layer in layers.items()}.items():  # once, however many names it has
        prefix = f"{name}." if name else ""
        own = {key: state[prefix + key] for key, _ in layer.named_buffers()}
        try:
            layer.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path}: layer {name!r}: {error}") from None
    _tie_heads(shared)
    folded = {name: folded_norm(model, name, fields, path) for name, fields in header["folded"].items()}
    _check_rest(model, {**layers, **folded}, state, buffers, path)
    for name, layer in layers.items():
        model = _put(model, name, layer)
    for name, norm in folded.items():
        _put(model, name, norm)
    _unshare(model, state)
    ties = _tied_parameters(model)
    model.load_state_dict(state, assign=True)
    for first, *others in ties:
        for name in others:
            _put(model, name, model.get_parameter(first))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if buffer.is_meta:
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent)._buffers[last] = buffers[name].clone()
    call_ternary_layers(model)
    note_for_transformers(model)
    return model.eval()


def _tie_heads(stored: _Shared) -> None:
    """Gives a linear layer of the tensors of an embedding its buffers, as `tied_head` does."""
    tables = {tensors: layer for (_, tensors), layer in stored.items() if isinstance(layer, TernaryEmbeddingInference)}
    for (_, tensors), layer in stored.items():
        if isinstance(layer, TernaryLinearInference) and tensors in tables:
            tables[tensors].tie(layer)


def _buffers_of(header: dict[str, Any], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The buffers that are no part of a state dict, taken out of what the file holds."""
    for name in header["buffers"]:
        if not isinstance(name, str) or name not in state:
            raise ValueError(f"{path} lists a buffer {name!r}, but holds no tensor of that name")
    return {name: state.pop(name) for name in dict.fromkeys(header["buffers"])}


def _unshare(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Gives each tensor of the model one of its own: the model decides what shares memory, not the file."""
    owned: dict[object, Tensor] = {}
    given: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, value in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{prefix}.{key}" if prefix else key
            if name not in state:
                continue
            owner = id(value) if isinstance(value, nn.Parameter) else (id(module), key)
            if owner not in owned:
                owned[owner] = state[name].clone() if id(state[name]) in given else state[name]
                given.add(id(owned[owner]))
            state[name] = owned[owner]


def _tied_parameters(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that stand in several places as one object."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _some(names: set[str]) -> str:
    """The first names, as many as a message holds."""
    first = sorted(names)[:20]
    return f"{first or 'nothing'}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _check_rest(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    state: dict[str, Tensor],
    buffers: dict[str, Tensor],
    path: Path,
) -> None:
    """Raises where the tensors outside the packed layers are not those of the model."""

    packed = {f"{name}.{key}" if name else key for name, layer in layers.items() for key, _ in layer.named_buffers()}
    prefixes = tuple(f"{name}." if name else "" for name in layers)
    wanted, given = {n for n in model.state_dict() if not n.startswith(prefixes)}, set(state) - packed
    if wanted != given:
        raise ValueError(
            f"{path} does not fit the model: missing {_some(wanted - given)}, unexpected {_some(given - wanted)}"
        )
    for name, tensor in model.state_dict().items():
        if name in wanted and tensor.shape != state[name].shape:
            raise ValueError(f"{path}: {name} must be {tuple(tensor.shape)}, got {tuple(state[name].shape)}")
        if name in wanted:
            _check_floating(name, tensor, state[name], path)
    for first, *others in _tied_parameters(model):
        for name in others:
            if first in wanted and name in wanted and not torch.equal(state[first], state[name]):
                raise ValueError(f"{path}: {first} and {name} differ, but the model has one parameter for both")
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if not buffer.is_meta or name in state or name.startswith(prefixes):
            continue
        if name not in buffers:
            raise ValueError(f"{path} does not hold {name}, which is on the meta device; build the model on a real one")
        if buffers[name].shape != buffer.shape:
            raise ValueError(f"{path}: {name} must be {tuple(buffer.shape)}, got {tuple(buffers[name].shape)}")
        _check_floating(name, buffer, buffers[name], path)
