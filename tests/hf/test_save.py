"""A packed folder and its copy in compressed-tensors, against the model and against transformers' own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bittorch
from bittorch.models import LanguageModel
from tests import helpers
from tests.hf import tiny

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import bittorch.hf  # noqa: E402


def _packed(**config: object) -> nn.Module:
    return tiny.own_route(tiny.llama(), bittorch.TernaryQuantConfig(method="twn", **config))


@pytest.mark.parametrize("config", [{}, {"group_size": 32}], ids=["channel", "group"])
def test_the_copy_is_the_same_model_to_all(config: dict[str, object], tmp_path: Path) -> None:
    model, place = _packed(**config), tmp_path / "packed"
    written = bittorch.hf.save_pretrained(model, place, compressed_tensors=True, max_shard_size="40KB")
    copy = tmp_path / "packed-compressed-tensors"
    assert written == [place, copy]
    expected = tiny.logits(model)
    auto = transformers.AutoModelForCausalLM
    helpers.assert_same_bits(tiny.logits(auto.from_pretrained(place)), expected)
    with torch.inference_mode():
        helpers.assert_same_bits(LanguageModel.from_pretrained(copy, tokenizer=False)(tiny.IDS), expected)
    pytest.importorskip("compressed_tensors")
    without = auto.from_pretrained(copy)  # bittorch has no part in it
    assert not any(isinstance(module, bittorch.nn.PackedLayer) for module in without.modules())
    helpers.assert_near(tiny.logits(without), expected, 1e-5)


def test_quantised_activations_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="activation_bits=8, which bittorch alone reads"):
        bittorch.hf.save_pretrained(_packed(activation_bits=8), tmp_path / "a", compressed_tensors=tmp_path / "b")


def test_what_cannot_be_copied_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    planes = tiny.own_route(tiny.llama(), depth=2)
    model, place, other = _packed(), tmp_path / "packed", tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for given, copy, error, text in (
        (planes, True, ValueError, r"q_proj has depth=2, and compressed-tensors holds depth 1 alone"),
        (tiny.llama(), True, ValueError, "has no packed layer"),
        (model, other, FileExistsError, "other"),
        (model, place, ValueError, "the folder of the packed model itself"),
        (model, 3, TypeError, "must be a folder, True or False, got 3"),
    ):
        with pytest.raises(error, match=text):
            bittorch.hf.save_pretrained(given, place, compressed_tensors=copy)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert bittorch.hf.save_pretrained(planes, place) == [place]
