"""The files of a packed model: what their header says of its layers, and whether their tensors are those of the layers.

The header is the ``bittorch`` metadata that `bittorch.save_ternary_inference_checkpoint` writes, in each file, so that
`bittorch.models.LanguageModel` opens what transformers saved, and transformers what that saved. Transformers sets
tensors without the checks of ``load_state_dict``: what is missing it leaves as it finds memory. The checks are here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings

from bittorch.hf.experts import DOWN, PackedExperts, is_fused
from bittorch.hf.selection import known_as
from bittorch.nn import PackedLayer, TernaryLinearInference
from bittorch.utils.checkpoint import FORMAT_VERSION, LAYOUT, layer_config, layer_of, read_header
from bittorch.utils.checkpoint_fit import check_fits, sizes_text

_DTYPES = {"weight_packed": ("U8",), "scale": ("F32",), "bias": ("F32", "F16", "BF16")}


class Stored(NamedTuple):
    """A tensor in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    name: str
    """There; transformers gives some tensors other names in the model."""


class Files:
    """The safetensors files of a model; without a name no tensor is found.

    Args:
        paths: of the files, as transformers gives them.
        model: that is to be filled; its ``base_model_prefix`` may stand before names, or be missing.

    Raises:
        ValueError: no file, files of another kind, no 'bittorch' metadata, or such of a newer version.
    """

    def __init__(self, paths: Iterable[str] | None, model: PreTrainedModel) -> None:
        self.prefix = f"{model.base_model_prefix}."
        self.tensors: dict[str, Stored] = {}
        self.layers: dict[str, Any] = {}
        renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
        found = [Path(path) for path in paths or ()]
        if not found or any(path.suffix != ".safetensors" for path in found):
            given = ", ".join(path.name for path in found[:3]) or "a state dict"
            raise ValueError(f"packed layers are described in the metadata of safetensors files, got {given}")
        for path in found:
            with safe_open(path, framework="pt") as file:
                header = read_header(file.metadata(), path)
                if self.layers and self.layers != header["layers"]:
                    raise ValueError(f"{path} describes other layers than {found[0]}; the files are of two models")
                if header["aliases"]:
                    raise ValueError(
                        f"{path} says that {next(iter(header['aliases']))} is stored under another name, which "
                        "transformers does not follow; open it by bittorch.models.LanguageModel"
                    )
                self.layers = header["layers"]
                for name in file.keys():  # noqa: SIM118, not a dict
                    entry = file.get_slice(name)
                    known = apply_renamings(name, renamings)
                    self.tensors[known] = Stored(path, entry.get_dtype(), tuple(entry.get_shape()), name)
        self.path = found[0].parent
        if blocks := [name for name in self.tensors if name.endswith("_blocks")]:
            raise ValueError(
                f"{self.path} holds {blocks[0]}, in blocks that transformers cannot look up; open it by "
                "bittorch.models.LanguageModel"
            )

    def name_of(self, name: str) -> str | None:
        """The name in the files of a tensor of the model."""
        return known_as(name, self.prefix, self.tensors)

    def read(self, name: str) -> Tensor:
        stored = self.name_of(name)
        assert stored is not None
        with safe_open(self.tensors[stored].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.tensors[stored].name)
        return tensor


def place_layers(model: PreTrainedModel, files: Files, dtype: torch.dtype) -> None:
    """Puts the empty layers that the files describe into a model on the meta device.

    Raises:
        ValueError: a layer that the model lacks or that has other sizes there, tensors that are missing, of another
            shape or dtype, or that belong to no layer.
    """
    for name, module in list(model.named_modules()):
        if is_fused(module) and known_as(f"{name}.0.{DOWN}", files.prefix, files.layers) is not None:
            model.set_submodule(name, PackedExperts.apart(module))
    modules = dict(model.named_modules())
    for stored_name, config in files.layers.items():
        name = known_as(stored_name, files.prefix, modules)
        if name is None:
            if any(n.startswith(files.prefix) for n in files.layers) and not stored_name.startswith(files.prefix):
                continue  # the head of a model of which the base alone is loaded
            raise ValueError(f"{files.path} has a packed layer {stored_name!r}, which {type(model).__name__} lacks")
        layer = layer_of(stored_name, config, files.path)
        _check_place(model, name, layer, files.path)
        _check_tensors(name, layer, files)
        layer.name, layer.weight_dtype = name, dtype
        model.set_submodule(name, layer)
    ending = ".weight_packed"
    if others := [n for n in files.tensors if n.endswith(ending) and n.removesuffix(ending) not in files.layers]:
        raise ValueError(f"{files.path} has {others[0]}, but its metadata describe no such layer")


def _check_place(model: nn.Module, name: str, layer: PackedLayer, path: Path) -> None:
    module = model.get_submodule(name)
    if type(module).__name__ == "Conv1D" and isinstance(layer, TernaryLinearInference):
        if (module.nx, module.nf) != (layer.in_features, layer.out_features):
            raise ValueError(f"{path}: {name!r} is {sizes_text(layer)}, but the model has {module.nx} -> {module.nf}")
        return
    check_fits(model, name, layer, path)


def _check_tensors(name: str, layer: PackedLayer, files: Files) -> None:
    for key, buffer in layer.named_buffers():
        stored = files.name_of(f"{name}.{key}")
        if stored is None:
            raise ValueError(f"{files.path} describes layer {name!r}, but holds no tensor {name}.{key}")
        entry = files.tensors[stored]
        if entry.shape != tuple(buffer.shape) or entry.dtype not in _DTYPES[key]:
            raise ValueError(
                f"{entry.file}: {stored} must be {'/'.join(_DTYPES[key])} {tuple(buffer.shape)} for "
                f"{sizes_text(layer)}, got {entry.dtype} {entry.shape}"
            )


def check_values(model: nn.Module, files: Files | None) -> None:
    """Raises where a packed layer has code 11, wrong padding, or a scale that is not finite.

    Tensors that stay on disk are read for it, one at a time.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, PackedLayer):
            continue
        for key in ("weight_packed", "scale"):
            tensor = getattr(layer, key)
            if tensor.is_meta and files is not None:
                tensor = files.read(f"{name}.{key}")
            try:
                layer._check_state({key: tensor}, "")
            except RuntimeError as error:
                where = f"{files.path}: " if files else ""
                raise ValueError(f"{where}layer {name!r}: {error}") from None


def metadata_of(layers: dict[str, PackedLayer]) -> dict[str, str]:
    """The metadata that describe packed layers."""
    described = {name: layer_config(layer) for name, layer in layers.items()}
    header = {"version": FORMAT_VERSION, "layout": LAYOUT, "layers": described, "aliases": {}}
    return {"bittorch": json.dumps(header)}
