"""Qwen2-MoE against transformers: experts, one that every token goes through, and what files say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, convert, open_checkpoint
from tests.models.architectures.agree import (
    assert_alike,
    assert_alike_but_from_gguf,
    assert_alike_from_everywhere,
    made,
    saved,
)
from tests.models.io.gguf_files import NO_TOKENS, write

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = "model.layers.1.mlp.shared_expert"


def moe(**changes: Any) -> Any:
    return made("Qwen2Moe", **{**EXPERTS, "shared_expert_intermediate_size": 96, **changes})


def gguf_file(net: Any, folder: Path, entries: dict[str, Any]) -> Path:
    """By gguf-py, whose gate of the shared expert is a vector."""
    net.save_pretrained(folder / "hf")
    with open_checkpoint(folder / "hf") as source:
        values = {name: source.dense(name).numpy() for name in source.names}
        values = {name: value[0] if "shared_expert_gate" in name else value for name, value in values.items()}
        extra = {f"qwen2moe.{key}": value for key, value in entries.items()}
        write(folder / "x.gguf", "qwen2moe", source.config, "F32", values, extra, without=NO_TOKENS)
    return folder / "x.gguf"


def test_dense_models_of_every_origin(tmp_path: Path) -> None:
    net = moe()
    assert net.model.layers[0].mlp.shared_expert.down_proj.weight.shape == (64, 96)
    assert_alike_from_everywhere(net, "qwen2_moe", tmp_path)
    with open_checkpoint(tmp_path / "x.gguf") as found:
        assert not found.config.normalise_experts


def test_layers_without_experts_or_biases(tmp_path: Path) -> None:
    net = moe(num_hidden_layers=3, mlp_only_layers=[1], norm_topk_prob=True, qkv_bias=False)
    assert_alike_but_from_gguf(net, tmp_path, "for normalise_experts=True, and means False")
    assert_alike(LanguageModel.from_pretrained(tmp_path / "hf", tokenizer=False), net)
    assert json.loads((tmp_path / "own" / "config.json").read_text())["qkv_bias"] is False


def test_nothing_said_of_dense_layers(tmp_path: Path) -> None:
    path = saved(moe(), tmp_path, mlp_only_layers=None)
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), moe())


def test_a_file_of_gguf_py(tmp_path: Path) -> None:
    sizes = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    path = gguf_file(moe(), tmp_path, {**sizes, "expert_shared_feed_forward_length": 96})
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), moe())


def test_older_files_have_no_sizes_of_experts(tmp_path: Path) -> None:
    """Then those of experts are 128 / 2, and of the shared one 128."""
    net = moe(moe_intermediate_size=64, shared_expert_intermediate_size=128)
    path = gguf_file(net, tmp_path, {"expert_count": 4, "expert_used_count": 2})
    with pytest.warns(
        UserWarning, match="expert_feed_forward_length = 64, .*shared_feed_forward_length = 128 is taken"
    ):
        assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)


@pytest.mark.filterwarnings("ignore:.*exactly trits times scales")
@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0", "compressed-tensors"])
def test_shared_experts_are_packed_and_their_gates_are_not(to: str, tmp_path: Path) -> None:
    net = moe(hidden_size=256, moe_intermediate_size=256, shared_expert_intermediate_size=512)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "expert" in name and "gate.weight" not in name:
                weight.copy_(torch.randint(-1, 2, weight.shape) / 16)
    net.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as written:
        assert all(written.info(f"{SHARED}.{part}_proj.weight").ternary for part in ("gate", "up", "down"))
        assert not written.info("model.layers.1.mlp.shared_expert_gate.weight").ternary
    assert_alike(LanguageModel.from_pretrained(tmp_path / "out", tokenizer=False), net)
    if to == "compressed-tensors":  # transformers has a linear layer there
        ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
        assert "model.layers.1.mlp.shared_expert_gate" in ignored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shared_expert_intermediate_size": 64},
            r"shared_expert.gate_proj.weight must be \(64, 64\) .* got \(96, 64\)",
        ),
        ({"shared_expert_intermediate_size": 0}, r"8 tensors that no part of the model uses: .*shared_expert"),
        (
            {"shared_expert_intermediate_size": -1},
            r"shared_expert_size must be an integer that is not negative, got -1",
        ),
        ({"use_sliding_window": True}, r"use_sliding_window True"),
    ],
)
def test_configurations_that_cannot_be_right(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(saved(moe(), tmp_path, **changes))
