"""Qwen3.5 and Qwen3.6: three of four layers are a DeltaNet, and attention has a gate behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from bittorch.models.architectures.base import GGUF_LAYER, Architecture, Entry, Form
from bittorch.models.architectures.qwen3 import NormedHeads
from bittorch.models.block import MLP, DecoderLayer
from bittorch.models.config import LAYER_TYPES, ModelConfig
from bittorch.models.delta_net import DeltaLayer, DeltaNet, tiled
from bittorch.models.rules import Block

DELTA = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


class Qwen35(Architecture):
    """See `Architecture`. What sees images and what predicts tokens beyond the next is left out.

    GGUF files have value heads in another order: the first of every key head, then the second of every key head.
    """

    name = "qwen3_5"
    hf_types = ("qwen3_5_text", "qwen3_5")
    hf_class = "Qwen3_5ForCausalLM"
    hf_defaults: ClassVar = {**Architecture.hf_defaults, "head_dim": 256, "partial_rotary_factor": 0.25}
    hf_neutral: ClassVar = {"attn_output_gate": (True, None), "attention_bias": (False, None)}
    hf_skipped = ("mtp.", "model.mtp.", "model.visual.")
    gguf: ClassVar = {"qwen35": "silu"}
    gguf_layer: ClassVar = {
        **{name: own for name, own in GGUF_LAYER.items() if name != "ffn_norm"},
        "post_attention_norm": GGUF_LAYER["ffn_norm"],
        **DELTA,
    }
    gguf_read = ("full_attention_interval", "nextn_predict_layers", "rope.dimension_sections")
    norms_from_one = True
    partial_rotation = True
    entries: ClassVar[tuple[Entry, ...]] = (
        Entry("layer_types", "layer_types", "attention.recurrent_layers", ()),
        Entry("delta_key_heads", "linear_num_key_heads", "ssm.group_count", 16),
        Entry("delta_value_heads", "linear_num_value_heads", "ssm.time_step_rank", 32),
        Entry("delta_key_dim", "linear_key_head_dim", "ssm.state_size", 128),
        Entry("delta_value_dim", "linear_value_head_dim", "ssm.inner_size", 128),
        Entry("delta_kernel", "linear_conv_kernel_dim", "ssm.conv_kernel", 4),
    )

    def layer(self, config: ModelConfig, index: int) -> Block:
        if config.is_delta(index):
            return DeltaLayer(config, DeltaNet(config, index), self.mlp(config))
        return DecoderLayer(config, NormedHeads(config, index, gated=True), self.mlp(config))

    def mlp(self, config: ModelConfig) -> Block:
        """Of every layer."""
        return MLP(config)

    def hf_values(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without layer_types, a number that says which layer attends stands in their place."""
        types = values.get("layer_types")
        return {**values, "layer_types": values.get("full_attention_interval", 4) if types is None else types}

    def of_hf(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "layer_types": kinds(fields["layer_types"], fields["num_layers"])}

    def of_gguf(self, fields: dict[str, Any], get: Callable[[str, Any], Any]) -> dict[str, Any]:
        heads, inner, layers = fields["delta_value_heads"], fields["delta_value_dim"], fields["num_layers"]
        if type(heads) is not int or type(inner) is not int or heads < 1 or inner % heads:
            raise ValueError(f"ssm.inner_size {inner!r:.40} is not cut into ssm.time_step_rank {heads!r:.40} heads")
        beyond = get("nextn_predict_layers", 0)
        if type(beyond) is not int or type(layers) is not int or not 0 <= beyond < layers:
            raise ValueError(f"nextn_predict_layers {beyond!r:.40} must be less than block_count {layers!r:.40}")
        if not isinstance(types := fields["layer_types"], list | tuple):
            raise ValueError(f"attention.recurrent_layers must be true or false for each layer, got {types!r:.40}")
        types = kinds(types or get("full_attention_interval", 4), layers)
        sizes = {"num_layers": layers - beyond, "delta_value_dim": inner // heads}
        return {**fields, **sizes, "layer_types": types[: layers - beyond]}

    def to_gguf(self, entries: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
        types = list(config.layer_types)
        every = types.index(LAYER_TYPES[1]) + 1 if LAYER_TYPES[1] in types else len(types) + 1
        return {
            **entries,
            **({"full_attention_interval": every} if kinds(every, len(types)) == types else {}),
            "ssm.inner_size": config.delta_value_heads * config.delta_value_dim,
            "rope.dimension_sections": [11, 11, 10, 0],  # llama.cpp wants them; tokens of text have one position
        }

    def gguf_form(self, config: ModelConfig, name: str) -> Form:
        part = name.partition(".linear_attn.")[2]
        if not part:
            return super().gguf_form(config, name)
        heads, values, channels = tiled(config) if config.delta_key_heads < config.delta_value_heads else [None] * 3
        if part == "out_proj.weight":  # what is rotated has its columns in the order of transformers
            rotated = config.hadamard is not None and name in config.hadamard.names
            return Form(columns=None if rotated else values)
        rows = {"in_proj_qkv": channels, "conv1d": channels, "in_proj_z": values, "norm": None}
        return Form(rows.get(part.partition(".")[0], heads), decay=part == "A_log", squeezed=part == "conv1d.weight")


def kinds(types: Any, layers: Any) -> Any:
    """Layer types by themselves, or of layers of which every so many-th attends. Raises ValueError."""
    if isinstance(types, list | tuple) or type(layers) is not int or not 0 < layers < 2**20:
        return types
    if type(types) is not int or types < 1:
        raise ValueError(f"full_attention_interval must be a positive integer, got {types!r:.40}")
    return [LAYER_TYPES[1] if (layer + 1) % types == 0 else LAYER_TYPES[2] for layer in range(layers)]


ARCHITECTURE = Qwen35()
