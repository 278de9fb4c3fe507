"""Qwen3 against transformers, from every place that it can come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bittorch
from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, LossyError, convert, open_checkpoint
from tests.models.architectures.agree import (
    IDS,
    assert_alike,
    assert_alike_from_everywhere,
    made,
    saved,
    written_by_gguf_py,
)


def qwen3(**changes: Any) -> Any:
    """Heads are wider than hidden_size / heads, and the embedding is tied."""
    return made("Qwen3", **{"head_dim": 32, "tie_word_embeddings": True, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True, "tie_word_embeddings": False}], ids=["tied", "biases"]
)
def test_dense_models_of_every_origin(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_alike_from_everywhere(qwen3(**changes), "qwen3", tmp_path)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def test_yarn(tmp_path: Path) -> None:
    """Blocks of channels that turn often, seldom and in between, at positions beyond the original context."""
    assert_alike_from_everywhere(qwen3(rope_parameters=YARN), "qwen3", tmp_path)


def test_a_gguf_file_refuses_what_it_cannot_say_of_yarn(tmp_path: Path) -> None:
    qwen3(rope_parameters={**YARN, "attention_factor": 0.9}).save_pretrained(tmp_path / "hf")
    with pytest.raises(LossyError, match=r"no entry for attention_factor 0\.9 of yarn"):
        convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf-tq2_0", allow_dense=True)
    assert not (tmp_path / "x.gguf").exists()


def test_a_file_of_gguf_py(tmp_path: Path) -> None:
    net = qwen3()
    extra = {"qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32}
    path = written_by_gguf_py(net, "qwen3", tmp_path, extra)
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq1_0", "compressed-tensors"])
def test_ternary_models_come_back_packed(to: str, tmp_path: Path) -> None:
    net = qwen3(hidden_size=256, intermediate_size=256, head_dim=64)
    bittorch.quantize_(net, bittorch.TernaryQuantConfig(method="twn"), skip="lm_head")
    model = LanguageModel.from_transformers(net)
    with torch.inference_mode():
        assert torch.equal(model(IDS), net(IDS).logits)
    model.save_pretrained(tmp_path / "out", to=to, allow_lossy=True)
    with open_checkpoint(tmp_path / "out") as written:
        assert all(written.info(name).ternary for name in written.names if name.endswith("_proj.weight"))
    with torch.inference_mode():
        again = LanguageModel.from_pretrained(tmp_path / "out", tokenizer=False)(IDS)
        assert float((again - model(IDS)).norm() / model(IDS).norm()) < 1e-2  # scales in float16


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"use_sliding_window True, which changes"):
        open_checkpoint(saved(qwen3(), tmp_path, use_sliding_window=True))
