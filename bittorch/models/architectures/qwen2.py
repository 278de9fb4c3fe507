"""Qwen2 and Qwen2.5: LLaMA with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bittorch.models.architectures.base import Architecture
from bittorch.models.attention import Attention
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig


class Qwen2(Architecture):
    """See `Architecture`."""

    name = "qwen2"
    hf_types = ("qwen2",)
    hf_class = "Qwen2ForCausalLM"
    hf_neutral: ClassVar = {"use_sliding_window": (False, None)}
    gguf: ClassVar = {"qwen2": "silu"}

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        return DecoderLayer(config, Attention(config, index), MLP(config))

    def hf_biases(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The class has them; no entry of config.json changes that."""
        return ("q_proj", "k_proj", "v_proj")


ARCHITECTURE = Qwen2()
