"""A model of transformers, trained in ternary, as a checkpoint in memory."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bittorch.models import architectures
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io import Checkpoint, PackedWeight, from_memory
from bittorch.models.io.generation_defaults import NOT_SAMPLING
from bittorch.models.io.hf_config import config_from_hf
from bittorch.models.io.stacks import unstacked
from bittorch.nn import TernaryLinearInference
from bittorch.quant.ternary import no_trits
from bittorch.utils.adapters import adapter_parts
from bittorch.utils.export import export_for_inference

if TYPE_CHECKING:
    from bittorch.models.tokenizer import Tokenizer


def checkpoint_of(model: nn.Module, fuse_norms: bool) -> Checkpoint:
    """See `LanguageModel.from_transformers`; the tensors are copies."""
    what = f"the configuration of {type(model).__name__}"
    values = {**_config_values(model), "bittorch": {"fuse_norms": fuse_norms}}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    config_from_hf(values, names, None, what)  # refuses what is not supported before anything is copied
    if adapters := list(adapter_parts(model)):
        raise ValueError(
            f"{type(model).__name__} has adapters, such as {adapters[0]}, which no format of language models holds "
            "beside ternary weights; remove them with unload()"
        )
    packed = _packed_copy(model)
    tensors: dict[str, Tensor | PackedWeight] = {}
    bits: dict[str, int | None] = {}
    for name, layer in packed.named_modules(remove_duplicate=False):
        if isinstance(layer, TernaryLinearInference):
            weight = PackedWeight(layer.weight_packed, layer.scale, layer.in_features, layer.depth)
            tensors[f"{name}.weight"] = weight
            bits[f"{name}.weight"] = no_trits(layer.activation_bits, "a language model")
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias
    parameters = dict(packed.named_parameters(remove_duplicate=False))
    tied = HEAD in parameters and parameters[HEAD] is parameters.get(EMBEDDING)
    dense = {name: value.detach() for name, value in parameters.items() if not (tied and name == HEAD)}
    tensors |= unstacked(dense, lambda stack, rows: stack.flatten(0, 1)[rows], what)
    if not tied and HEAD not in tensors:
        raise ValueError(f"{type(model).__name__} has no head, lm_head; give the model of class ...ForCausalLM")
    layers = [value for name, value in bits.items() if name != HEAD] or list(bits.values())
    config = config_from_hf({**values, "tie_word_embeddings": tied}, tensors, layers[0] if layers else None, what)
    ends = dict.fromkeys([*config.eos_token_ids, *_generation_ends(model)])
    return from_memory(dataclasses.replace(config, eos_token_ids=tuple(ends)), tensors, {}, bits)


def _generation_ends(model: nn.Module) -> list[int]:
    """The end tokens of the model's generation_config, which may be more than those of its config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]


def sampling_of(model: nn.Module) -> dict[str, Any]:
    """How the model is to be sampled, by its generation_config; empty where it says nothing but token numbers."""
    config = getattr(model, "generation_config", None)
    values = {} if config is None else json.loads(config.to_json_string())
    return {key: value for key, value in values.items() if key not in NOT_SAMPLING}


def _config_values(model: nn.Module) -> Mapping[str, Any]:
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not isinstance(model, nn.Module) or to_dict is None:
        raise TypeError(
            f"model must be a model of transformers, which has a config; got {type(model).__name__}. Supported model "
            f"types: {', '.join(architectures.hf_types())}"
        )
    values: Mapping[str, Any] = to_dict()
    return values


def _packed_copy(model: nn.Module) -> nn.Module:
    """A copy that the model's further training does not change, after the checks of export."""
    with warnings.catch_warnings():  # a dense model, or one that is packed already
        warnings.filterwarnings("ignore", "the model has no ternary layer to export")
        return export_for_inference(model)


def tokenizer_of(tokenizer: Any, model: nn.Module) -> Tokenizer | None:
    """Ours for one of transformers, through its files; ends of texts are also those of the generation_config.

    Raises:
        TypeError: something else.
    """
    from bittorch.models.tokenizer import Tokenizer

    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(
            f"tokenizer must be one of transformers or a bittorch.models.Tokenizer, got {type(tokenizer).__name__}"
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        if ends := _generation_ends(model):
            (Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        return Tokenizer.from_source(Path(folder))
