"""Small random models and vocabularies, made in memory: what the tests of `bittorch.models` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.config import PROJECTIONS
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import Checkpoint, PackedWeight, from_memory
from tests import helpers

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=128,
    hidden_act="relu2",
    architecture="bitnet",
    tie_embeddings=True,
    activation_bits=8,
)


def checkpoint(config: ModelConfig, tensors: Mapping[str, Tensor | PackedWeight], tokenizer: Any = None) -> Checkpoint:
    """An open checkpoint with these tensors."""
    return from_memory(config, tensors, tokenizer or {})


def random_packed(n: int, k: int, seed: int, scale: str = "tensor") -> PackedWeight:
    """Random trits; scales that keep the variance of what they multiply."""
    shape = {"tensor": (1,), "channel": (n,)}.get(scale) or (n, k // int(scale))
    scales = (torch.rand(shape, generator=helpers.seeded(seed)) + 0.5) / k**0.5
    return PackedWeight(helpers.pack(helpers.random_codes(n, k, seed)), scales, k)


def tensors(config: ModelConfig, ternary: bool = True, seed: int = 0) -> dict[str, Tensor | PackedWeight]:
    """Random values of everything that the configuration calls for."""
    values: dict[str, Tensor | PackedWeight] = {}
    for index, (name, shape) in enumerate(tensor_shapes(config).items(), seed * 1000):
        if len(shape) == 1:
            values[name] = helpers.randn(*shape, seed=index) * 0.1 + (0 if name.endswith("bias") else 1)
        elif ternary and name.split(".")[-2] in PROJECTIONS:
            values[name] = random_packed(*shape, index)
        else:
            values[name] = helpers.randn(*shape, seed=index) / shape[1] ** 0.5
    return values


def model(config: ModelConfig = CONFIG, ternary: bool = True, seed: int = 0, **options: Any) -> LanguageModel:
    """A random model without a tokenizer. Its head is in planes, so that no product depends on the batch."""
    options.setdefault("head_depth", 4 if ternary else None)
    source = checkpoint(config, tensors(config, ternary, seed))
    return LanguageModel.from_checkpoint(source, LoadOptions(**options), tokenizer=False)


def changed(**values: Any) -> ModelConfig:
    """The tiny configuration with other values."""
    return dataclasses.replace(CONFIG, **values)


def prompts(*lengths: int, seed: int = 7) -> list[list[int]]:
    """Random token numbers."""
    generator = helpers.seeded(seed)
    return [torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist() for length in lengths]
