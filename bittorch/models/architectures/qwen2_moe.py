"""Qwen2-MoE, also of Qwen1.5: Qwen2 with experts, and one that every token goes through, in every layer or in some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from bittorch.models.architectures.base import EXPERT_ENTRIES, Entry, has_sizes
from bittorch.models.architectures.qwen2 import Qwen2
from bittorch.models.attention import Attention
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.experts import SparseMLP


class Qwen2MoE(Qwen2):
    """See `Architecture`. GGUF files have experts in every layer, and weights of a token's experts as they are."""

    name = "qwen2_moe"
    hf_types = ("qwen2_moe",)
    hf_class = "Qwen2MoeForCausalLM"
    hf_defaults: ClassVar = {
        **Qwen2.hf_defaults,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }
    hf_neutral: ClassVar = {**Qwen2.hf_neutral, "scoring_func": ("softmax", None)}
    gguf: ClassVar = {"qwen2moe": "silu"}
    entries = (
        *EXPERT_ENTRIES[:2],
        Entry("expert_size", "moe_intermediate_size", "expert_feed_forward_length", None),
        Entry("shared_expert_size", "shared_expert_intermediate_size", "expert_shared_feed_forward_length", None),
        Entry("normalise_experts", "norm_topk_prob", None, False, implied=False),
        Entry("dense_layers", "mlp_only_layers", None, ()),
        Entry("expert_step", "decoder_sparse_step", None, 1),
    )

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        mlp = SparseMLP(config) if config.has_experts(index) else MLP(config)
        return DecoderLayer(config, Attention(config, index), mlp)

    def to_hf(self, values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        return {**values, "qkv_bias": config.has_bias("q_proj")}

    def of_gguf(self, fields: dict[str, Any], get: Callable[[str, Any], Any]) -> dict[str, Any]:
        """llama.cpp cuts the MLP's size into the experts of a token, and gives the shared expert all of it."""
        if not has_sizes(fields) or type(fields["experts_per_token"]) is not int:
            return fields
        size = fields["intermediate_size"]
        older = {"expert_size": size // max(1, fields["experts_per_token"]), "shared_expert_size": size}
        return {**fields, **{name: value for name, value in older.items() if fields[name] is None}}

    def hf_biases(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        return super().hf_biases(values) if values.get("qkv_bias", True) else ()


ARCHITECTURE = Qwen2MoE()
