"""A model written as a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bittorch.models.config import ModelConfig
from bittorch.models.decoder import Decoder
from bittorch.models.io import Report, from_memory, save
from bittorch.models.io.conversion import Progress
from bittorch.models.rules import activation_bits, named_tensors
from bittorch.nn import TernaryLinearInference


def save_model(
    model: Decoder,
    tokenizer_source: Path | Mapping[str, Any],
    path: Path,
    *,
    to: str = "bittorch",
    allow_lossy: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """See `LanguageModel.save_pretrained`; the tokenizer is that of another place, as `from_memory` takes it."""
    source = from_memory(stored_config(model), dict(named_tensors(model)), tokenizer_source, activation_bits(model))
    return save(source, path, to=to, allow_lossy=allow_lossy, overwrite=overwrite, progress=progress)


def stored_config(model: Decoder) -> ModelConfig:
    """The configuration of what is written: a packed head is a tensor of its own, and layers keep their precision."""
    modules = [*model.layers.modules(), model.lm_head]
    packed = [module.activation_bits for module in modules if isinstance(module, TernaryLinearInference)]
    tied = model.config.tie_embeddings and isinstance(model.lm_head, nn.Linear)
    bits = packed[0] if packed else None
    return dataclasses.replace(model.config, tie_embeddings=tied, activation_bits=bits)
