"""Qwen3-MoE: Qwen3 with experts instead of one MLP, in every layer or in some."""

from __future__ import annotations

from typing import ClassVar

from bittorch.models.architectures.base import EXPERT_ENTRIES, Architecture, Entry
from bittorch.models.architectures.qwen3 import NormedHeads, Qwen3
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.experts import SparseMLP


class Qwen3MoE(Qwen3):
    """See `Architecture`. GGUF files have experts in every layer, and weights of a token's experts that sum to 1."""

    name = "qwen3_moe"
    hf_types = ("qwen3_moe",)
    hf_class = "Qwen3MoeForCausalLM"
    hf_defaults: ClassVar = {**Architecture.hf_defaults}  # head_dim is hidden_size / heads, as in other models
    hf_second_names: ClassVar = {"num_experts": "num_local_experts"}
    hf_neutral: ClassVar = {
        **Qwen3.hf_neutral,
        "scoring_func": ("softmax", None),
        "shared_expert_intermediate_size": (0, None),
    }
    gguf: ClassVar = {"qwen3moe": "silu"}
    entries = (
        *EXPERT_ENTRIES,
        Entry("normalise_experts", "norm_topk_prob", None, False),
        Entry("dense_layers", "mlp_only_layers", None, ()),
        Entry("expert_step", "decoder_sparse_step", None, 1),
    )

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        mlp = SparseMLP(config) if config.has_experts(index) else MLP(config)
        return DecoderLayer(config, NormedHeads(config, index), mlp)


ARCHITECTURE = Qwen3MoE()
