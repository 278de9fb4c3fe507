"""Texts as vectors, against transformers, and what files say of pooling."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bittorch.models import LanguageModel
from bittorch.models.config import POOLINGS
from bittorch.models.io import FormatError, convert, open_checkpoint, save
from tests import helpers
from tests.models import tiny
from tests.models.architectures.agree import made
from tests.models.io.gguf_files import dense_values, write
from tests.models.io.tiny import LLAMA, model

TEXTS = tiny.prompts(7, 1, 12, 7, 3)


def pooled(net: Any, tokens: list[int], pooling: str) -> Tensor:
    """Of transformers, one text alone, so that there is no padding."""
    states = net.model(torch.tensor([tokens])).last_hidden_state[0]
    return F.normalize({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling], dim=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_equal_those_of_transformers(pooling: str, tmp_path: Path) -> None:
    """Texts of other lengths in the batch change nothing."""
    net = made("Qwen3", head_dim=32, tie_word_embeddings=True)
    found = LanguageModel.from_transformers(net)
    vectors = found.embed(TEXTS, pooling=pooling, batch_size=3)
    assert (vectors.shape, vectors.dtype) == ((5, 64), torch.float32)
    with torch.inference_mode():
        expected = torch.stack([pooled(net, tokens, pooling) for tokens in TEXTS])
    assert float((vectors - expected).abs().max()) < 1e-5
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5))
    assert not vectors.requires_grad
    (vectors @ torch.ones(64, requires_grad=True)).sum().backward()  # may be the input of something that is trained


def test_packed_models_give_each_text_the_bits_that_it_has_alone() -> None:
    found = tiny.model(tiny.changed(pooling="last"))
    vectors = found.embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        helpers.assert_same_bits(found.embed([text])[0], vector)


def gguf_vocabulary(**more: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "</s>", *(f"<{i}>" for i in range(20))],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, *[3] * 20],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
        **more,
    }


def test_a_text_ends_as_the_tokenizer_says(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    extra = {**gguf_vocabulary(**{"tokenizer.ggml.add_eos_token": True}), "llama.pooling_type": 3}
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), extra)
    found = LanguageModel.from_pretrained(tmp_path / "x.gguf")
    assert found.config.pooling == "last"
    bos = [] if found.tokenizer is None else found.tokenizer.encode("")[:-1]
    assert torch.equal(found.embed("abab"), found.embed([[*bos, 2, 2, 3]]))
    assert found.embed([]).shape == (0, 256)


@pytest.mark.parametrize("pooling", ["", *POOLINGS])
def test_poolings_are_written_and_read(pooling: str, tmp_path: Path) -> None:
    save(model(dataclasses.replace(LLAMA, pooling=pooling)), tmp_path / "own", to="bittorch")
    convert(tmp_path / "own", tmp_path / "x.gguf", to="gguf-tq2_0")
    convert(tmp_path / "x.gguf", tmp_path / "again", to="compressed-tensors")
    for path in ("own", "x.gguf", "again"):
        with open_checkpoint(tmp_path / path) as found:
            assert found.config.pooling == pooling
    with open_checkpoint(tmp_path / "own", override={"pooling": "cls"}) as found:
        assert found.config.pooling == "cls"


MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
LAST = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}


def folder(path: Path, modules: Any, pooling: dict[str, Any] | None) -> Path:
    """A directory as sentence-transformers has it."""
    save(model(LLAMA), path, to="bittorch")
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    if pooling is not None:
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (LAST, "last"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 256}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_directories_of_sentence_transformers(pooling: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path / "x", MODULES, pooling)) as found:
        assert found.config.pooling == expected


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (MODULES, {**LAST, "pooling_mode_cls_token": True}, "got pooling_mode_cls_token, pooling_mode_lasttoken"),
        (MODULES, {"pooling_mode_max_tokens": True}, "must say one of .*, got pooling_mode_max_tokens"),
        (MODULES, {}, "must say one of .*, got none"),
        (MODULES, {"pooling_mode": "max"}, "pooling_mode 'max' is not read; known are mean, cls, lasttoken"),
        (MODULES, {"pooling_mode": []}, r"pooling_mode \[\] is not read"),
        (MODULES, None, "Pooling in 1_Pooling, which has no config.json"),
        ([*MODULES, {"type": "sentence_transformers.models.Dense"}], LAST, r"of type '.*Dense', which changes vectors"),
        ([*MODULES, MODULES[1]], LAST, "2 modules of type Pooling"),
        ([{"type": "Pooling", "path": "../1_Pooling"}], LAST, "which is no folder of the directory"),
        ({"a": 1}, LAST, "must list modules"),
    ],
)
def test_directories_that_cannot_be_right(
    modules: Any, pooling: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder(tmp_path / "x", modules, pooling))


@pytest.mark.parametrize("value", [4, 17, "last"])
def test_unknown_poolings_of_gguf_files(value: Any, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), {"llama.pooling_type": value})
    with pytest.raises(FormatError, match=rf"llama\.pooling_type {value!r}; known are 0 none, 1 mean, 2 cls, 3 last"):
        open_checkpoint(tmp_path / "x.gguf")


def test_bad_input_is_refused() -> None:
    found = tiny.model()
    with pytest.raises(ValueError, match=r"does not say how .* give pooling, one of mean, cls, last"):
        found.embed(TEXTS)
    for arguments, message in (
        ({"texts": TEXTS, "pooling": "max"}, "pooling must be one of mean, cls, last, got 'max'"),
        ({"texts": TEXTS, "pooling": "mean", "batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"texts": [[1], []], "pooling": "mean"}, "text 1 is empty"),
        ({"texts": "a", "pooling": "mean"}, "text 0 is text, and the model has no tokenizer"),
        ({"texts": [[1], [10**30]], "pooling": "mean"}, "text 1 has token numbers from 10{30} to 10{30}, the voc"),
        ({"texts": [[1] * 129], "pooling": "mean"}, "a context of 128 tokens, got a sequence of 129"),
        ({"texts": [[300]], "pooling": "mean"}, "text 0 has token numbers from 300 to 300, the vocabulary 0 to 299"),
    ):
        with pytest.raises(ValueError, match=message):
            found.embed(**arguments)
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, last, or empty, got 3"):
        tiny.changed(pooling=3)
    broken = tiny.model(ternary=False)
    broken.norm.weight.data[0] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        broken.embed([[1, 2]], pooling="last")
