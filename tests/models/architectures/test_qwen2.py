"""Qwen2 against transformers, from every place that it can come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, open_checkpoint
from tests.models.architectures.agree import (
    assert_alike,
    assert_alike_from_everywhere,
    made,
    saved,
    written_by_gguf_py,
)


def qwen2(**changes: Any) -> Any:
    return made("Qwen2", **changes)


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
    with pytest.raises(FormatError, match=r"use_sliding_window True, which changes"):
        open_checkpoint(saved(qwen2(), tmp_path, use_sliding_window=True))
