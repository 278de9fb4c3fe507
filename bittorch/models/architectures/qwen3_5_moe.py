"""Qwen3.5-MoE and Qwen3.6-MoE: Qwen3.5 with experts in every layer, and one that every token goes through."""

from __future__ import annotations

from typing import ClassVar

from bittorch.models.architectures.base import EXPERT_ENTRIES, Entry
from bittorch.models.architectures.qwen3_5 import Qwen35
from bittorch.models.config import ModelConfig
from bittorch.models.experts import SparseMLP
from bittorch.models.rules import Block


class Qwen35MoE(Qwen35):
    """See `Architecture`. The weights of a token's experts sum to 1; no layer has intermediate_size, nor have files."""

    name = "qwen3_5_moe"
    hf_types = ("qwen3_5_moe_text", "qwen3_5_moe")
    hf_class = "Qwen3_5MoeForCausalLM"
    hf_defaults: ClassVar = {
        **Qwen35.hf_defaults,
        "intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }
    hf_neutral: ClassVar = {**Qwen35.hf_neutral, "norm_topk_prob": (True, None), "mlp_only_layers": ([], None)}
    gguf: ClassVar = {"qwen35moe": "silu"}
    gguf_defaults: ClassVar = {"feed_forward_length": 512}
    entries: ClassVar[tuple[Entry, ...]] = (
        *Qwen35.entries,
        *EXPERT_ENTRIES,
        Entry("shared_expert_size", "shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    )

    def mlp(self, config: ModelConfig) -> Block:
        return SparseMLP(config)


ARCHITECTURE = Qwen35MoE()
