"""Gemma 3 against transformers, from every place that it can come from, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from bittorch.models import LanguageModel, ModelConfig
from bittorch.models.decoder import tensor_shapes as shapes
from bittorch.models.io import FormatError, convert, open_checkpoint
from bittorch.models.io.hf_config import config_to_hf
from tests.models.architectures.agree import (
    IDS,
    assert_alike,
    assert_alike_but_from_gguf,
    assert_alike_from_everywhere,
    assert_packed_alike_from_everywhere,
    made,
    saved,
)
from tests.models.io.gguf_files import NO_TOKENS, write

SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = {SLIDING: {"rope_type": "default", "rope_theta": 1e4}, FULL: {"rope_type": "default", "rope_theta": 1e6}}


def gemma3(**changes: Any) -> Any:
    """Three layers, of which the second sees all tokens; a window is shorter than the text."""
    kinds = {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 5}
    return made("Gemma3", "Gemma3Text", **{"head_dim": 32, "rope_parameters": ROPE, **kinds, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"query_pre_attn_scalar": 32},
        {
            "query_pre_attn_scalar": 32,
            "rope_parameters": {**ROPE, FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
            "tie_word_embeddings": False,
        },
        {"query_pre_attn_scalar": 32, "layer_types": [FULL] * 3},
    ],
    ids=["windows", "linear", "no windows"],
)
def test_dense_models_of_every_origin(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_alike_from_everywhere(gemma3(**changes), "gemma3", tmp_path)


def test_scores_that_are_divided_by_another_number(tmp_path: Path) -> None:
    """GGUF has no entry for it: llama.cpp knows the one model that has another by its layers."""
    net = gemma3(query_pre_attn_scalar=20)
    assert_alike_but_from_gguf(net, tmp_path, r"no entry of gemma3 for query_size=20")


def test_bfloat16_rounds_the_scale_of_embeddings(tmp_path: Path) -> None:
    """The root of 96 is 9.7979; transformers multiplies by 9.8125 in bfloat16."""
    net = gemma3(hidden_size=96, query_pre_attn_scalar=32)
    net.save_pretrained(tmp_path)
    assert LanguageModel.from_pretrained(tmp_path, tokenizer=False).embedding_scale == float(torch.tensor(96**0.5))
    half = LanguageModel.from_pretrained(tmp_path, tokenizer=False, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(half.embedded(IDS[0]), net.model.embed_tokens.bfloat16()(IDS[0]))


def test_older_files_say_it_in_other_entries(tmp_path: Path) -> None:
    """A period for the kinds of layers, two bases of rotation, and the activation's older name."""
    net = gemma3(num_hidden_layers=2, layer_types=[SLIDING, FULL], query_pre_attn_scalar=32)
    older = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_parameters": None, "layer_types": None}
    path = saved(net, tmp_path, **older, sliding_window_pattern=2, hidden_act="gelu_pytorch_tanh")
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)


LAYER = (
    "attn_norm attn_q attn_k attn_v attn_q_norm attn_k_norm attn_output post_attention_norm ffn_norm ffn_gate ffn_up "
    "ffn_down post_ffw_norm"
)


def test_gguf_files_are_as_llama_cpp_has_them(tmp_path: Path) -> None:
    """Names, norms plus 1, and entries, as gguf-py reads them."""
    net = gemma3(query_pre_attn_scalar=32)
    net.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf-tq2_0", allow_dense=True)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    tensors = {tensor.name.removesuffix(".weight"): tensor.data for tensor in reader.tensors}
    assert set(tensors) == {"token_embd", "output_norm"} | {
        f"blk.{i}.{name}" for i in range(3) for name in LAYER.split()
    }
    layer = net.model.layers[1]
    for name, norm in {
        "blk.1.attn_norm": layer.input_layernorm,
        "blk.1.post_attention_norm": layer.post_attention_layernorm,
        "blk.1.ffn_norm": layer.pre_feedforward_layernorm,
        "blk.1.post_ffw_norm": layer.post_feedforward_layernorm,
        "blk.1.attn_q_norm": layer.self_attn.q_norm,
        "output_norm": net.model.norm,
    }.items():
        assert torch.equal(torch.tensor(tensors[name]), norm.weight + 1), name
    said = {key.removeprefix("gemma3."): field.contents() for key, field in reader.fields.items()}
    assert said["general.architecture"] == "gemma3"
    assert said["attention.sliding_window"] == 5
    assert said["attention.sliding_window_pattern"] == [True, False, True]
    assert (said["rope.freq_base"], said["rope.freq_base_swa"]) == (1e6, 1e4)


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    net = gemma3(query_pre_attn_scalar=20)
    net.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as found:
        values = config_to_hf(found.config)
    theirs = type(net.config)(**values).to_dict()
    for key in ("sliding_window", "layer_types", "rope_parameters", "hidden_activation", "query_pre_attn_scalar"):
        assert theirs[key] == net.config.to_dict()[key], key


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("sliding_window", "5", r"sliding_window must be an integer that is not negative, got '5'"),
        ("sliding_window", -1, r"sliding_window must be an integer that is not negative, got -1"),
        ("sliding_window", 1, r"window must be positive for layers of sliding_attention"),
        ("sliding_window", None, r"sliding_window must be positive for layers of sliding_attention, got none"),
        ("query_pre_attn_scalar", 0, r"query_pre_attn_scalar must be positive, got 0"),
        ("layer_types", "full", r"layer_types must be a list, or a positive period, got 'full'"),
        ("layer_types", [FULL], r"layer_types has 1 values for 3 layers"),
        ("layer_types", [FULL, FULL, "linear"], r"layer_types must be of sliding_attention, full_attention"),
        ("query_pre_attn_scalar", 2.5, r"query_size must be an integer that is not negative, got 2\.5"),
        ("rope_parameters", {SLIDING: {"rope_type": "linear"}}, r"sliding_attention must be of rope_type default"),
        ("rope_parameters", {SLIDING: {"rope_theta": -1.0}}, r"local_rope_theta must be 0 or positive"),
        ("final_logit_softcapping", 30.0, r"final_logit_softcapping 30\.0, which changes"),
        ("use_bidirectional_attention", True, r"use_bidirectional_attention True, which changes"),
        ("hidden_activation", "gelu", r"hidden_act must be one of silu, relu2, gelu_tanh, got 'gelu'"),
        ("num_hidden_layers", 2**30, r"too few for the 1073741824 layers"),
    ],
)
def test_entries_that_cannot_be_right(entry: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(saved(gemma3(), tmp_path, **{entry: value}))


CONFIG = ModelConfig(
    architecture="gemma3",
    vocab_size=50,
    hidden_size=256,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    max_positions=64,
    hidden_act="gelu_tanh",
    tie_embeddings=True,
    norms_from_one=True,
    window=4,
    layer_types=(SLIDING, FULL),
    local_rope_theta=1e4,
    rope_theta=1e6,
)


@pytest.mark.filterwarnings("ignore:the model has activation_bits=8:bittorch.models.io.CheckpointWarning")
def test_packed_models_are_the_same_from_every_format(tmp_path: Path) -> None:
    assert_packed_alike_from_everywhere(CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("entries", "window", "kinds"),
    [
        ({}, 0, ()),
        ({"attention.sliding_window": 9}, 8, (*[SLIDING] * 5, FULL, SLIDING)),
        ({"attention.sliding_window": 9, "attention.sliding_window_pattern": 2}, 8, (*[SLIDING, FULL] * 3, SLIDING)),
        ({"attention.sliding_window": 9, "attention.sliding_window_pattern": [False] * 6 + [True]}, 8, None),
    ],
)
def test_windows_of_gguf_files(
    entries: dict[str, Any], window: int, kinds: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """Nothing said means none, as in files of bitnet.cpp; a window alone, that every sixth layer has none."""
    config = dataclasses.replace(CONFIG, num_layers=7, window=0, layer_types=())
    extra = {f"gemma3.{key}": value for key, value in {"attention.key_length": 64, **entries}.items()}
    values = {name: torch.ones(shape).numpy() for name, shape in shapes(config).items()}
    write(tmp_path / "x.gguf", "gemma3", config, "F32", values, extra, without=NO_TOKENS)
    with open_checkpoint(tmp_path / "x.gguf", ternary="never") as found:
        assert (found.config.window, found.config.local_rope_theta) == (window, 1e4)
        assert found.config.layer_types == ((*[FULL] * 6, SLIDING) if kinds is None else kinds)
        assert not found.dense("model.layers.3.self_attn.q_norm.weight").any()  # 1 is stored for 0
