"""Qwen3: LLaMA with a norm of each query and key head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bittorch.models.architectures.base import Architecture
from bittorch.models.attention import Attention
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.norm import RMSNorm


class Qwen3(Architecture):
    """See `Architecture`."""

    name = "qwen3"
    hf_types = ("qwen3",)
    hf_class = "Qwen3ForCausalLM"
    hf_defaults: ClassVar = {**Architecture.hf_defaults, "head_dim": 128}
    hf_neutral: ClassVar = {"use_sliding_window": (False, None)}
    gguf: ClassVar = {"qwen3": "silu"}

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        return DecoderLayer(config, NormedHeads(config, index), MLP(config))


class NormedHeads(Attention):
    """Attention whose queries and keys are normed head by head, before they are rotated."""

    q_norm: RMSNorm
    k_norm: RMSNorm

    def __init__(self, config: ModelConfig, layer: int, *, gated: bool = False) -> None:
        super().__init__(config, layer, gated=gated)
        self.hold_norm(config, "q_norm", self.head_dim)
        self.hold_norm(config, "k_norm", self.head_dim)

    def prepared(self, heads: Tensor) -> Tensor:
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), 1)


ARCHITECTURE = Qwen3()
