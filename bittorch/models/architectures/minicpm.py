"""MiniCPM, MiniCPM4 and BitCPM4: LLaMA with scales of embeddings, of what layers add, and of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from bittorch.models.architectures.base import Architecture, Entry, has_sizes
from bittorch.models.attention import Attention
from bittorch.models.batch import Batch
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import ModelConfig
from bittorch.models.rope import Rotation


class MiniCPM(Architecture):
    """See `Architecture`.

    config.json has ``scale_depth`` and ``dim_model_base``: residual_scale is ``scale_depth / sqrt(num_layers)``,
    logit_scale ``hidden_size / dim_model_base``. transformers has no class; that of the checkpoints is meant.
    """

    name = "minicpm"
    hf_types = ("minicpm",)
    hf_class = "MiniCPMForCausalLM"
    hf_defaults: ClassVar = {**Architecture.hf_defaults, "tie_word_embeddings": True}
    hf_neutral: ClassVar = {
        "num_experts": (0, None),
        "sparse_config": (None,),
        "use_mup": (True, None),
    }
    gguf: ClassVar = {"minicpm": "silu"}
    gguf_permuted = True
    entries = (
        Entry("embedding_scale", "scale_emb", "embedding_scale", None),
        Entry("residual_scale", "scale_depth", "residual_scale", None),
        Entry("logit_scale", "dim_model_base", "logit_scale", None),
    )

    def layer(self, config: ModelConfig, index: int) -> DecoderLayer:
        return ScaledLayer(config, Attention(config, index), MLP(config))

    def of_hf(self, fields: dict[str, Any]) -> dict[str, Any]:
        if not has_sizes(fields):
            return fields
        given = {entry.hf: 1 if (value := fields[entry.field]) is None else value for entry in self.entries}
        for key, value in given.items():
            if type(value) not in (int, float) or not 0 < value < 2**127:
                raise ValueError(f"{key} must be positive and finite, got {value!r:.100}")
        return {
            **fields,
            "embedding_scale": float(given["scale_emb"]),
            "residual_scale": given["scale_depth"] / math.sqrt(fields["num_layers"]),
            "logit_scale": fields["hidden_size"] / given["dim_model_base"],
        }

    def to_hf(self, values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        depth = config.residual_scale * math.sqrt(config.num_layers)
        return {
            **values,
            "scale_depth": float(f"{depth:.15g}"),  # as it was written; the root leaves an error in digit 17
            "dim_model_base": float(f"{config.hidden_size / config.logit_scale:.15g}"),
        }

    def of_gguf(self, fields: dict[str, Any], get: Callable[[str, Any], Any]) -> dict[str, Any]:
        if not has_sizes(fields):
            return fields
        older = {
            "embedding_scale": 12.0,
            "residual_scale": 1.4 / math.sqrt(fields["num_layers"]),
            "logit_scale": fields["hidden_size"] / 256,
        }
        return {**fields, **{name: value for name, value in older.items() if fields[name] is None}}


class ScaledLayer(DecoderLayer):
    """``x + s attention(norm(x))``, then ``x + s mlp(norm(x))``, s being residual_scale."""

    def __init__(self, config: ModelConfig, self_attn: Attention, mlp: MLP) -> None:
        super().__init__(config, self_attn, mlp)
        self.scale = config.residual_scale

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        x = x + self.self_attn(x, self.input_layernorm, rotation, batch) * self.scale
        return x + self.mlp(x, self.post_attention_layernorm) * self.scale


ARCHITECTURE = MiniCPM()
