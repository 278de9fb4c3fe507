"""A model's tensors under the names that checkpoints use, and written."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bittorch.models.block import DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.io import PackedWeight, Report, from_memory, save
from bittorch.models.io.conversion import Progress
from bittorch.models.linear import Concatenated, split_packed
from bittorch.models.norm import RMSNorm
from bittorch.nn import TernaryLinearInference

if TYPE_CHECKING:
    from bittorch.models.model import LanguageModel

Named = Iterator[tuple[str, Tensor | PackedWeight]]


def save_pretrained(
    model: LanguageModel, path: Path, *, to: str = "bittorch", allow_lossy: bool = False, overwrite: bool = False
) -> Report:
    """See `LanguageModel.save_pretrained`."""
    with tempfile.TemporaryDirectory() as folder:
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        return save_model(model, Path(folder), path, to=to, allow_lossy=allow_lossy, overwrite=overwrite)


def save_model(
    model: LanguageModel,
    tokenizer_source: Path | Mapping[str, Any],
    path: Path,
    *,
    to: str = "bittorch",
    allow_lossy: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """The same with the tokenizer of another place, as `from_memory` takes it, and with a report and progress."""
    source = from_memory(stored_config(model), dict(canonical_tensors(model)), tokenizer_source, activation_bits(model))
    return save(source, path, to=to, allow_lossy=allow_lossy, overwrite=overwrite, progress=progress)


def stored_config(model: LanguageModel) -> ModelConfig:
    """The configuration of what is written: a packed head is a tensor of its own, and layers keep their precision."""
    modules = [*model.layers.modules(), model.lm_head]
    packed = [module.activation_bits for module in modules if isinstance(module, TernaryLinearInference)]
    tied = model.config.tie_embeddings and isinstance(model.lm_head, nn.Linear)
    bits = packed[0] if packed else None
    return dataclasses.replace(model.config, tie_embeddings=tied, activation_bits=bits)


def canonical_tensors(model: LanguageModel) -> Named:
    """Every tensor of the model by its canonical name, fused layers apart."""
    config = model.config
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner, hidden = config.intermediate_size, config.hidden_size
    yield "model.embed_tokens.weight", model.embed_tokens.weight.detach()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        prefix = f"model.layers.{index}."
        attention, mlp = layer.self_attn, layer.mlp
        yield from _parts(attention.qkv_proj, [f"{prefix}self_attn.{p}_proj" for p in "qkv"], [q, kv, kv])
        yield from _parts(attention.o_proj, [f"{prefix}self_attn.o_proj"], [hidden])
        yield from _parts(mlp.gate_up_proj, [f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"], [inner, inner])
        yield from _parts(mlp.down_proj, [f"{prefix}mlp.down_proj"], [hidden])
        for name, norm in layer.named_modules():
            if isinstance(norm, RMSNorm):
                yield f"{prefix}{name}.weight", norm.weight.detach()
    yield "model.norm.weight", model.norm.weight.detach()
    if not (config.tie_embeddings and isinstance(model.lm_head, nn.Linear)):
        yield from _parts(model.lm_head, ["lm_head"], [config.vocab_size])


def activation_bits(model: LanguageModel) -> dict[str, int | None]:
    """Of every ternary layer, by the canonical name of its weight."""
    found: dict[str, int | None] = {}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        prefix = f"model.layers.{index}."
        attention, mlp = layer.self_attn, layer.mlp
        found |= _bits(attention.qkv_proj, [f"{prefix}self_attn.{p}_proj" for p in "qkv"])
        found |= _bits(attention.o_proj, [f"{prefix}self_attn.o_proj"])
        found |= _bits(mlp.gate_up_proj, [f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"])
        found |= _bits(mlp.down_proj, [f"{prefix}mlp.down_proj"])
    return found | _bits(model.lm_head, ["lm_head"])


def _bits(module: nn.Module, names: Sequence[str]) -> dict[str, int | None]:
    parts = module.parts if isinstance(module, Concatenated) else [module] * len(names)
    pairs = zip(parts, names, strict=True)
    return {f"{n}.weight": part.activation_bits for part, n in pairs if isinstance(part, TernaryLinearInference)}


def _parts(module: nn.Module, names: Sequence[str], rows: Sequence[int]) -> Named:
    """The weights, and biases, of one layer that does the work of several."""
    if isinstance(module, Concatenated):
        for part, name, count in zip(module.parts, names, rows, strict=True):
            yield from _parts(part, [name], [count])
        return
    if isinstance(module, nn.Linear):
        weights: Sequence[Tensor | PackedWeight] = module.weight.detach().split(list(rows))
    else:
        assert isinstance(module, TernaryLinearInference)
        fused = PackedWeight(module.weight_packed, module.scale, module.in_features, module.depth)
        weights = split_packed(fused, rows)
    biases = None if module.bias is None else module.bias.detach().split(list(rows))
    for index, name in enumerate(names):
        yield f"{name}.weight", weights[index]
        if biases is not None:
            yield f"{name}.bias", biases[index]
