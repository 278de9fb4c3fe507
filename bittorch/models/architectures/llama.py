"""LLaMA: attention with grouped queries and rotary positions, gated MLP with SiLU, a norm before each."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

from bittorch.models.architectures.base import SUB_NORM, Architecture
from bittorch.models.attention import Attention
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig


class Llama(Architecture):
    """See `Architecture`."""

    name = "llama"
    hf_types = ("llama",)
    hf_class = "LlamaForCausalLM"
    gguf: ClassVar = {"llama": "silu"}
    gguf_permuted = True

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        return DecoderLayer(config, Attention(config, index), MLP(config))

    def of_tensors(self, names: Container[str]) -> str:
        """The first BitNet models say that they are LLaMA; their norms tell."""
        return "bitnet" if SUB_NORM in names else self.name


ARCHITECTURE = Llama()
