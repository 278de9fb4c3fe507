"""Adapters in files: safetensors with A, B and scales of each layer, and what they are in the metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bittorch.nn import TernaryLinearInference
from bittorch.train.lora import (
    LoraLinear,
    adapter_names,
    check_k,
    check_known,
    check_name,
    lora_layers,
    set_adapter,
    wrap,
)
from bittorch.train.lora_forms import FORMS
from bittorch.utils.safetensors_file import write_safetensors
from bittorch.utils.wrappers import named_layers

_VERSION = 1
_KEY = "bittorch_adapter"


def save_adapter(model: nn.Module, path: str | os.PathLike[str], name: str | None = None) -> None:
    """Writes one adapter: its matrices and scales, not the model. A failure leaves the old file or the whole new one.

    Args:
        model: with adapters.
        path: the file, conventionally ``*.safetensors``.
        name: None is the only one.

    Raises:
        ValueError: no adapter of that name, or several and no name.
        OSError: the file cannot be written.
    """
    names = adapter_names(model)
    if name is None and len(names) != 1:
        raise ValueError(f"name the adapter to save; the model has {', '.join(names) or 'none'}")
    chosen = names[0] if name is None else name
    check_known(model, chosen)
    layers = {n: layer for n, layer in lora_layers(model).items() if chosen in layer.lora_A}
    stored = {
        f"{layer_name}.{key}": value.cpu().contiguous().clone()
        for layer_name, layer in layers.items()
        for key, value in layer.tensors(chosen).items()
    }
    form = next(iter(layers.values())).form
    described = {"version": _VERSION, "form": form, "k": {n: layer.k[chosen] for n, layer in layers.items()}}
    write_safetensors(path, stored, {_KEY: json.dumps(described)})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ValueError(f"{path} holds no adapter of bittorch: it has no {_KEY!r} metadata")
            described = json.loads(text)
            version, form, factors = described["version"], described["form"], {**described["k"]}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has damaged {_KEY!r} metadata: {error!r}") from None
    if version != _VERSION or form not in list(FORMS):
        raise ValueError(
            f"{path} has version {version!r:.40} and form {form!r:.40}; this bittorch reads version {_VERSION} and "
            f"{', '.join(FORMS)}; update bittorch"
        )
    return {"form": form, "k": factors}, tensors


def _checked(
    tensors: dict[str, Tensor], layer: Any, layer_name: str, k: object, form: str, path: Path
) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """A, B, k and the scale of a layer; ValueError where they are not of its shapes, or not finite."""
    base = layer.base_layer if isinstance(layer, LoraLinear) else layer
    a = tensors.get(f"{layer_name}.lora_A")
    r = a.shape[0] if a is not None and a.dim() == 2 else 0
    wanted: dict[str, tuple[int, ...]] = {"lora_A": (r, base.in_features), "lora_B": (base.out_features, r)}
    if form == "grid" and isinstance(base, TernaryLinearInference):
        wanted["lora_scale"] = tuple(base.scale.shape)
    for key, shape in wanted.items():
        value = tensors.get(f"{layer_name}.{key}")
        if value is None or r < 1 or tuple(value.shape) != shape or value.dtype != torch.float32:
            found = "nothing" if value is None else f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(
                f"{path}: {layer_name}.{key} must be float32 {('r', *shape[1:]) if key == 'lora_A' else shape} for the "
                f"layer of the model, {base.in_features} -> {base.out_features}, got {found}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: {layer_name}.{key} holds NaN or Inf; the file is damaged")
    factor = check_k(k, f"{path}: k of {layer_name}")
    a, b, *scale = (tensors[f"{layer_name}.{key}"].clone() for key in wanted)
    return a, b, factor, scale[0] if scale else None


def load_adapter(model: nn.Module, path: str | os.PathLike[str], name: str = "default") -> list[str]:
    """Adds the adapter of a file to the model that it was trained on, and makes it active, as `set_adapter` does.

    To go on training the adapter alone, call ``model.requires_grad_(False)`` first.

    Args:
        model: with the ternary layers that the file names, with adapters or without.
        path: a file of `save_adapter`.
        name: what the adapter is called here.

    Returns:
        Names of its layers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a newer version, layers that the model lacks or that have other shapes, NaN or
            Inf, tensors of no layer, a name that is taken, adapters of another form.
        TypeError: layers of a kind that the form does not take. The model is as it was then.
    """
    check_name(name)
    if name in adapter_names(model):
        raise ValueError(f"the model has an adapter {name!r} already; load this one under another name")
    path = Path(path)
    described, tensors = _read(path)
    form, modules = described["form"], dict(named_layers(model))
    found: dict[str, nn.Module] = {}
    for layer_name in described["k"]:
        if not isinstance(modules.get(layer_name), (LoraLinear, *FORMS["beside"])):
            raise ValueError(f"{path} has an adapter of {layer_name!r}, which is no ternary layer of the model")
        found[layer_name] = modules[layer_name]
    if not found:
        raise ValueError(f"{path} names no layer")
    values = {n: _checked(tensors, layer, n, described["k"][n], form, path) for n, layer in found.items()}
    known = {f"{n}.{key}" for n in found for key in LoraLinear.adapter_layer_names}
    if others := sorted(tensors.keys() - known):
        raise ValueError(f"{path} has {others[0]}, but its metadata describe no adapter of such a layer")
    for layer_name, layer in wrap(model, found, form).items():
        a, b, k, scale = values[layer_name]
        device = layer.weight.device
        layer.put(name, a.to(device), b.to(device), k, None if scale is None else scale.to(device))
    set_adapter(model, name)
    return list(found)
