"""A model small enough to write in every format, with values that each format can hold."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import Checkpoint, PackedWeight, from_memory
from tests.helpers import pack, random_codes, seeded

BITNET = ModelConfig(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_positions=128,
    rope_theta=500000.0,
    hidden_act="relu2",
    architecture="bitnet",
    tie_embeddings=True,
    activation_bits=8,
    bos_token_id=1,
    eos_token_ids=(2, 3),
)
LLAMA = dataclasses.replace(BITNET, hidden_act="silu", architecture="llama", tie_embeddings=False, activation_bits=None)


def random_scale(kind: str, n: int, k: int, seed: int) -> Tensor:
    """Multipliers that float16 holds: of the tensor, of rows, or of groups of 256 or 64."""
    groups = {"tensor": 0, "channel": 1, "group256": k // 256, "group64": k // 64}[kind]
    shape = {0: (1,), 1: (n,)}.get(groups) or (n, groups)
    return (torch.rand(shape, generator=seeded(seed)) + 0.1).half().float()


@functools.cache
def _packed(n: int, k: int, seed: int) -> Tensor:
    return pack(random_codes(n, k, seed))


def tensors(config: ModelConfig, scale: str = "tensor", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Random ternary projections, everything else of ``dtype``."""
    made: dict[str, Any] = {}
    for seed, (name, shape) in enumerate(tensor_shapes(config).items()):
        if name.endswith("_proj.weight"):
            n, k = shape
            made[name] = PackedWeight(_packed(n, k, seed), random_scale(scale, n, k, seed), k)
        else:
            made[name] = torch.randn(shape, generator=seeded(seed)).to(dtype)
    return made


def model(
    config: ModelConfig = BITNET, scale: str = "tensor", tokenizer: Path | dict[str, Any] | None = None
) -> Checkpoint:
    return from_memory(config, tensors(config, scale), {} if tokenizer is None else tokenizer)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    """The same tensors: floats equal, trits and scales equal as they come."""
    assert set(one.names) == set(other.names)
    for name in one.names:
        assert one.info(name).ternary == other.info(name).ternary, name
        if one.info(name).ternary:
            a, b = one.packed(name), other.packed(name)
            assert torch.equal(a.weight_packed, b.weight_packed), name
            assert torch.equal(a.scale, b.scale), name
            assert (a.in_features, a.depth) == (b.in_features, b.depth)
        else:
            assert torch.equal(one.dense(name).float(), other.dense(name).float()), name
