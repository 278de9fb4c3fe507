"""Maple: Qwen3-MoE with windows in most layers, rotation in these alone, and limited gates."""

from __future__ import annotations

from typing import ClassVar

from bittorch.models.architectures.base import EXPERT_ENTRIES, Architecture, Entry
from bittorch.models.architectures.qwen3 import NormedHeads
from bittorch.models.block import DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.experts import SparseMLP


class Maple(Architecture):
    """See `Architecture`.

    A window of 512 is 513 tokens, as the model's own code has it; llama.cpp sees 512. It has no class in transformers.
    """

    name = "maple"
    hf_types = ("maple",)
    hf_class = "MapleForCausalLM"
    hf_neutral: ClassVar = {
        "nope_on_global_attention": (True,),
        "num_shared_experts": (0, None),
        "use_bias": (False, None),
        "first_k_dense_replace": (0, None),
        "scoring_func": ("softmax", None),
    }
    gguf: ClassVar = {"maple": "silu"}
    partial_rotation = True
    entries = (
        *EXPERT_ENTRIES,
        Entry("normalise_experts", "norm_topk_prob", None, True),
        Entry("expert_limit", "swiglu_limit", "swiglu_clamp_exp", 7.0),
        Entry("window", "sliding_window", "attention.sliding_window"),
        Entry("layer_types", "layer_types", "attention.sliding_window_pattern"),
    )

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        attention = NormedHeads(config, index)
        if not attention.window:
            attention.rotated = 0
        return DecoderLayer(config, attention, SparseMLP(config, precise=True))


ARCHITECTURE = Maple()
