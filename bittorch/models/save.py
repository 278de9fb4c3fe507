"""A model written as a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from bittorch.models.config import EMBEDDING, HEAD, ModelConfig
from bittorch.models.decoder import Decoder
from bittorch.models.io import Report, from_memory, save
from bittorch.models.io.conversion import Progress
from bittorch.models.rules import activation_bits, named_tensors


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
    tensors, bits = dict(named_tensors(model)), activation_bits(model)
    source = from_memory(_stored_config(model.config, tensors, bits), tensors, tokenizer_source, bits)
    return save(source, path, to=to, allow_lossy=allow_lossy, overwrite=overwrite, progress=progress)


def _stored_config(config: ModelConfig, tensors: Container[str], bits: Mapping[str, int | None]) -> ModelConfig:
    """The configuration of what is written: a packed head is a tensor of its own, and layers keep their precision."""
    layers = [own for name, own in bits.items() if name not in (HEAD, EMBEDDING)] or list(bits.values())
    first = layers[0] if layers else None
    return dataclasses.replace(config, tie_embeddings=HEAD not in tensors, activation_bits=first)
