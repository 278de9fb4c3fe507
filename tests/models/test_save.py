"""What is written is read back as the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bittorch.models import LanguageModel
from bittorch.models.io import PackedWeight, from_memory, open_checkpoint, save
from bittorch.models.rules import named_tensors
from bittorch.nn import TernaryLinearInference
from tests import helpers
from tests.models import tiny
from tests.models.vocabularies import TEXTS, byte_tokenizer

IDS = torch.tensor(tiny.prompts(30))
QKV_MLP = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
CASES: dict[str, tuple[Any, bool, dict[str, Any]]] = {
    "ternary": (tiny.CONFIG, True, {}),
    "ternary, dense head": (tiny.CONFIG, True, {"head_depth": None}),
    "floating activations": (tiny.CONFIG, True, {"activation_bits": None}),
    "dense bf16": (tiny.CONFIG, False, {"dtype": torch.bfloat16}),
    "planes": (tiny.changed(architecture="llama", tie_embeddings=False), False, {"depth": 3, "group_size": 16}),
    "planes and biases": (tiny.changed(biases=QKV_MLP), False, {"depth": 2, "head_depth": 5}),
    "biases": (tiny.changed(biases=QKV_MLP, hidden_act="silu"), True, {}),
    "output bias": (tiny.changed(biases=("o_proj",)), True, {}),
}


@pytest.mark.filterwarnings("ignore:group_size=16")
@pytest.mark.parametrize("name", CASES)
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    config, ternary, options = CASES[name]
    model = tiny.model(config, ternary, **options)
    model.save_pretrained(tmp_path / "model")
    again = LanguageModel.from_pretrained(tmp_path / "model", tokenizer=False, dtype=model.dtype)
    with torch.inference_mode():
        helpers.assert_same_bits(again(IDS), model(IDS))
    assert isinstance(again.lm_head, TernaryLinearInference) == isinstance(model.lm_head, TernaryLinearInference)


def test_the_tensors_are_those_of_the_checkpoint() -> None:
    tensors = tiny.tensors(tiny.CONFIG)
    model = LanguageModel.from_checkpoint(tiny.checkpoint(tiny.CONFIG, tensors), tokenizer=False)
    found = dict(named_tensors(model))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        other = found[name]
        if isinstance(value, PackedWeight):
            assert isinstance(other, PackedWeight)
            assert torch.equal(value.weight_packed, other.weight_packed)
            assert torch.equal(value.scale, other.scale)
        else:
            assert isinstance(other, torch.Tensor)
            assert torch.equal(value, other)


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    model = tiny.model()
    model.tokenizer = byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    again = LanguageModel.from_pretrained(tmp_path / "model")
    assert again.tokenizer is not None
    for text in TEXTS.values():
        assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.generate(["text"], max_new_tokens=8) == model.generate(["text"], max_new_tokens=8)


@pytest.mark.parametrize("target", ["bitnet", "compressed-tensors", "bittorch-base3", "gguf-tq2_0", "gguf-i2_s"])
def test_other_formats_give_the_same_model(target: str, tmp_path: Path) -> None:
    wide = tiny.changed(hidden_size=256, intermediate_size=256, head_dim=64, tie_embeddings=False)
    model = tiny.model(wide, head_depth=None)
    tensors = dict(named_tensors(model))
    if target == "gguf-tq2_0":  # its scales are halves
        for name, value in tensors.items():
            if isinstance(value, PackedWeight):
                tensors[name] = PackedWeight(value.weight_packed, value.scale.half().float(), value.in_features)
        model = LanguageModel.from_checkpoint(tiny.checkpoint(wide, tensors), tokenizer=False)
    byte_tokenizer().save(tmp_path)
    path = tmp_path / ("model.gguf" if target.startswith("gguf") else "model")
    save(from_memory(wide, tensors, tmp_path), path, to=target)
    again = LanguageModel.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        helpers.assert_same_bits(again(IDS), model(IDS))
    assert again.tokenizer is not None
    assert again.tokenizer.encode("any text") == byte_tokenizer().encode("any text")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    with pytest.raises(FileExistsError):
        tiny.model(seed=1).save_pretrained(tmp_path / "model")
    tiny.model(seed=1).save_pretrained(tmp_path / "model", overwrite=True)
    again = LanguageModel.from_pretrained(tmp_path / "model", tokenizer=False)
    with torch.inference_mode():
        helpers.assert_same_bits(again(IDS), tiny.model(seed=1)(IDS))


def test_a_packed_head_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.info("lm_head.weight").ternary
        assert checkpoint.packed("lm_head.weight").depth == 4
