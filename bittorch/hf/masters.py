"""Folders of masters, which ``save_pretrained`` writes of a model in training: they load as layers to train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from bittorch.hf.selection import known_as
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.quant import TernaryQuantConfig
from bittorch.utils.transformers_config import is_sample, note_for_transformers, read_record, sample
from bittorch.utils.twins import TWINS


def _described(
    record: Mapping[str, Any], model: PreTrainedModel
) -> dict[str, list[tuple[TernaryQuantConfig, list[float]]]]:
    """Configurations and samples of each layer, by its name in this model; ValueError for a damaged record."""
    if record.get("unnamed"):
        raise ValueError(
            f"the folder holds masters of {record['unnamed']!r:.40} ternary layers whose names it does not record, "
            "because quantize_ was given parts of the model; call quantize_ on the whole model, with filter_fn"
        )
    modules, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    lacking: list[str] = []
    found: dict[str, list[tuple[TernaryQuantConfig, list[float]]]] = {}
    for recorded, config, numbers in read_record(record):
        name = known_as(recorded, prefix, modules)
        if name is None:
            lacking.append(recorded)
        else:
            found.setdefault(name, []).append((config, numbers))
    whole = not found or any(name.startswith(prefix) for name in found)  # else the base alone, of a model with a head
    if lacking and (whole or any(name.startswith(prefix) for name in lacking)):
        raise ValueError(f"the record names {lacking[0]!r} as a ternary layer, which {type(model).__name__} lacks")
    return found


def place_layers(model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    """Puts empty ternary layers where the record has them, into a model on the meta device.

    Raises:
        ValueError: a damaged record, two configurations of a layer, layers that cannot become ternary.
    """
    for name, described in _described(record, model).items():
        module, config = model.get_submodule(name), described[0][0]
        if others := {other for other, _ in described if other != config}:
            raise ValueError(
                f"the record has two configurations of {name}, {config} and {others.pop()}, of two models that shared "
                "a config; give each its own, and save them again"
            )
        if isinstance(module, TernaryLayer):  # of a model that makes its own layers ternary
            if module.config != config:
                raise ValueError(f"the record has {config} for {name}, but the model makes it with {module.config}")
        elif type(module) in TWINS:
            model.set_submodule(name, TWINS[type(module)](module, config))
        else:
            raise ValueError(f"the record names {name!r} as a ternary layer, but the model has {type(module).__name__}")


def finish(model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    """Makes the loaded model one that `bittorch.quantize_` made.

    Raises:
        ValueError: weights that are missing, or not those of the record.
    """
    for name, described in _described(record, model).items():
        layer = model.get_submodule(name)
        for key, parameter in layer.named_parameters(recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):  # transformers marks what it has loaded
                raise ValueError(f"the record names {name} as ternary, but the files hold no {name}.{key}")
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        stored = sample(weight)
        if stored and not any(is_sample(numbers, stored, weight.dtype) for _, numbers in described):
            raise ValueError(
                f"the record names {name} as ternary, but its weight is not that of the ternary layer: another model "
                "was saved with the configuration of a ternary one. Save the trained model again, or remove "
                "quantization_config from config.json to load the weights dense"
            )
    quantizer = model.hf_quantizer
    quantizer.remove_quantization_config(model)
    model.config._is_quantized = False
    note_for_transformers(model)
