"""Configurations that no model has are refused when they are made."""

import dataclasses
from typing import Any

import pytest

from bittorch.models.config import PROJECTIONS
from bittorch.models.decoder import tensor_shapes
from tests.models.io.tiny import BITNET, LLAMA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive integer, got 0"),
        ({"vocab_size": True}, "vocab_size must be a positive integer, got True"),
        ({"num_layers": 2.0}, r"num_layers must be a positive integer, got 2\.0"),
        ({"num_heads": 3}, "num_heads=3 is no multiple of num_kv_heads=2"),
        ({"head_dim": 63}, "head_dim must be even for rotary positions, got 63"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, relu2, gelu_tanh, got 'gelu'"),
        ({"activation_bits": 4}, "activation_bits must be None, 8, 16 or 24, got 4"),
        ({"activation_bits": 8.0}, r"activation_bits must be None, 8, 16 or 24, got 8\.0"),  # FIELD R15
        ({"window": 4}, "layer_types must name the layers of window=4, got none"),
        ({"embedding_scale": 0.0}, r"embedding_scale must be positive and finite, got 0\.0"),
        ({"residual_scale": "1"}, "residual_scale must be positive and finite, got '1'"),
        ({"logit_scale": float("nan")}, "logit_scale must be positive and finite, got nan"),
        ({"rms_norm_eps": 0.0}, r"rms_norm_eps must be above 0 and below 1, got 0\.0"),
        ({"rms_norm_eps": 10**30}, "rms_norm_eps must be above 0 and below 1, got 1000"),  # FIELD R15
        ({"rope_theta": 10**400}, "rope_theta must be positive and finite, got 1000"),
        ({"rope_theta": float("nan")}, "rope_theta must be positive and finite, got nan"),
        ({"bos_token_id": -1}, "must be numbers of tokens, got -1"),
        ({"eos_token_ids": ("x",)}, "must be numbers of tokens, got 'x'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type 'dynamic' is not known"),
        ({"rope_scaling": {"rope_type": []}}, r"rope_type \[\] is not known"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear must have a positive factor, got None"),
        ({"rope_scaling": {"rope_type": "factors", "factors": [1.0]}}, r"must be 32 numbers, got shape \(1,\)"),
        ({"rope_scaling": {"rope_type": "factors", "factors": [0.0] * 32}}, "must be positive and finite"),
    ],
)
def test_impossible_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BITNET, **change)


def test_llama3_needs_its_frequencies_in_order() -> None:
    kind = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}
    with pytest.raises(ValueError, match="low_freq_factor below high_freq_factor"):
        dataclasses.replace(LLAMA, rope_scaling={**kind, "original_max_position_embeddings": 64})


def test_tensor_shapes() -> None:
    """Against what is written down here: GQA, sub-norms, ties, biases."""
    shapes = tensor_shapes(BITNET)
    assert "lm_head.weight" not in shapes
    assert tensor_shapes(LLAMA)["lm_head.weight"] == (24, 256)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (128, 256)
    assert shapes["model.layers.0.mlp.ffn_sub_norm.weight"] == (512,)
    assert len(shapes) == 2 + 2 * (7 + 4)
    biased = tensor_shapes(dataclasses.replace(LLAMA, biases=PROJECTIONS))
    assert len(biased) == len(tensor_shapes(LLAMA)) + 2 * 7
    assert biased["model.layers.0.self_attn.o_proj.bias"] == (256,)
    qkv = tensor_shapes(dataclasses.replace(LLAMA, biases=("q_proj", "k_proj", "v_proj")))
    assert {name.split(".")[-2] for name in qkv if name.endswith(".bias")} == {"q_proj", "k_proj", "v_proj"}
