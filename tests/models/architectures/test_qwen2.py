"""Qwen2 against transformers, from every place that it can come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from bittorch.models import LanguageModel  # noqa: E402
from bittorch.models.io import FormatError, open_checkpoint  # noqa: E402
from tests.models.architectures.agree import (  # noqa: E402
    HEADS,
    SIZES,
    assert_alike,
    assert_alike_from_everywhere,
    randomised,
    written_by_gguf_py,
)


def qwen2(**changes: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    torch.manual_seed(1)
    settings = {**SIZES, **HEADS, "rope_parameters": rope, **changes}
    config = transformers.Qwen2Config(**settings, eos_token_id=None, bos_token_id=None)
    return randomised(transformers.Qwen2ForCausalLM(config))


@pytest.mark.parametrize("tied", [False, True])
def test_dense_models_of_every_origin(tied: bool, tmp_path: Path) -> None:
    """Queries, keys and values have biases that no entry of config.json announces; the output has none."""
    net = qwen2(tie_word_embeddings=tied)
    assert net.model.layers[0].self_attn.k_proj.bias is not None
    assert_alike_from_everywhere(net, "qwen2", tmp_path)


def test_a_file_of_gguf_py(tmp_path: Path) -> None:
    net = qwen2()
    path = written_by_gguf_py(net, "qwen2", tmp_path)
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    qwen2().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "use_sliding_window": True}))
    with pytest.raises(FormatError, match=r"use_sliding_window True, which changes"):
        open_checkpoint(tmp_path)
