"""BitNet b1.58: LLaMA with a norm before each output projection, 8-bit activations, and the square of ReLU."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

from bittorch.models.architectures.base import SUB_NORM, Architecture
from bittorch.models.attention import Attention
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig


class BitNet(Architecture):
    """See `Architecture`."""

    name = "bitnet"
    hf_types = ("bitnet",)
    hf_class = "BitNetForCausalLM"
    hf_defaults: ClassVar = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "relu2"}
    gguf: ClassVar = {"bitnet": None, "bitnet-b1.58": "relu2", "bitnet-25": "relu2"}
    activation_bits = 8

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        return DecoderLayer(config, Attention(config, index, sub_norm=True), MLP(config, sub_norm=True))

    def of_tensors(self, names: Container[str]) -> str:
        """Without the norms it is LLaMA."""
        return self.name if SUB_NORM in names else "llama"

    def gguf_name(self, config: ModelConfig, type_name: str) -> str:
        """bitnet.cpp, which reads I2_S, knows the activation by the architecture; llama.cpp by an entry."""
        return "bitnet-b1.58" if type_name == "I2_S" and config.hidden_act == "relu2" else "bitnet"


ARCHITECTURE = BitNet()
