"""Gemma 3, text alone: norms around attention and MLP, windows with a rotation of their own, GELU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from bittorch.models.architectures.base import GGUF_LAYER, Architecture, Entry, counted_windows, has_sizes
from bittorch.models.architectures.qwen3 import NormedHeads
from bittorch.models.block import MLP, SandwichLayer
from bittorch.models.config import WINDOW_TYPES, ModelConfig


class Gemma3(Architecture):
    """See `Architecture`.

    Files count the token itself to the window, `ModelConfig.window` does not. Without layer_types every sixth layer has
    none. Embeddings are multiplied by the root of hidden_size, as the dtype of the model holds it.
    """

    name = "gemma3"
    hf_types = ("gemma3_text",)
    hf_class = "Gemma3ForCausalLM"
    hf_defaults: ClassVar = {
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "gelu_pytorch_tanh",
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    }
    hf_second_names: ClassVar = {"hidden_act": "hidden_activation"}
    hf_neutral: ClassVar = {
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    }
    gguf: ClassVar = {"gemma3": "gelu_tanh"}
    gguf_layer: ClassVar = {
        **GGUF_LAYER,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    norms_from_one = True
    entries = (
        Entry("window", "sliding_window", "attention.sliding_window", 0),
        Entry("layer_types", "layer_types", "attention.sliding_window_pattern", 6),
        Entry("local_rope_theta", "rope_local_base_freq", "rope.freq_base_swa", 10000.0),
        Entry("query_size", "query_pre_attn_scalar", None, 256),
    )

    def layer(self, config: ModelConfig, index: int) -> SandwichLayer:
        return SandwichLayer(config, NormedHeads(config, index), MLP(config))

    def embedding_scale(self, config: ModelConfig, dtype: torch.dtype) -> float:
        return float(torch.tensor(config.hidden_size**0.5).to(dtype))

    def hf_values(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Newer files have rope_parameters for each of the two kinds of layers, older ones a period for layer_types."""
        kinds = values.get("layer_types")
        if isinstance(kinds, list) and WINDOW_TYPES[0] in kinds and values.get("sliding_window", 1) in (None, 0):
            raise ValueError(f"sliding_window must be positive for layers of {WINDOW_TYPES[0]}, got none")
        if values.get("query_pre_attn_scalar", 1) == 0:
            raise ValueError("query_pre_attn_scalar must be positive, got 0")
        if kinds is None:
            values = {**values, "layer_types": values.get("sliding_window_pattern", 6)}
        both = values.get("rope_parameters")
        if not isinstance(both, dict) or not both or not both.keys() <= set(WINDOW_TYPES):
            return values
        local, full = (both.get(kind) or {} for kind in WINDOW_TYPES)
        if not isinstance(local, dict) or local.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters of {WINDOW_TYPES[0]} must be of rope_type default, got {local!r:.100}")
        theta = local.get("rope_theta", values.get("rope_local_base_freq", 10000.0))
        return {**values, "rope_parameters": full, "rope_local_base_freq": theta}

    def of_hf(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, **counted_windows(fields)}

    def to_hf(self, values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        local = {"rope_theta": values.pop("rope_local_base_freq"), "rope_type": "default"}
        act = values.pop("hidden_act")
        return {
            **values,
            "hidden_activation": act,
            "sliding_window": config.window + 1 if config.window else None,
            "layer_types": list(config.layer_types) or [WINDOW_TYPES[1]] * config.num_layers,
            "query_pre_attn_scalar": config.query_size or config.head_dim,
            "rope_parameters": dict(zip(WINDOW_TYPES, (local, values["rope_parameters"]), strict=True)),
        }

    def of_gguf(self, fields: dict[str, Any], get: Callable[[str, Any], Any]) -> dict[str, Any]:
        """llama.cpp knows the 27B model, whose scores are divided by another number, by its layers."""
        found = self.of_hf(fields)
        large = has_sizes(fields) and fields["num_layers"] == 62
        return {**found, "query_size": fields["hidden_size"] // fields["num_heads"]} if large else found

    def to_gguf(self, entries: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        if config.window:
            return {**entries, "attention.sliding_window": config.window + 1}
        return {key: value for key, value in entries.items() if "sliding_window" not in key}


ARCHITECTURE = Gemma3()
