"""Language models whose planes are chosen by a text."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bittorch import Calibration, TernaryLinearInference
from bittorch.models import LanguageModel
from bittorch.models.calibrate import calibrate_, text_windows
from tests.cli import tiny_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers", reason="language models need bittorch[lm]")
    return tiny_model.make(tmp_path_factory.mktemp("models") / "tiny", hidden_size=64)


def _lost(model: LanguageModel, dense: LanguageModel) -> float:
    tokens = torch.tensor([dense.tokenizer.encode(TEXT)[5:205]])
    with torch.inference_mode():
        return float((model(tokens) - dense(tokens)).norm())


def test_layers_become_planes_and_the_file_keeps_them(path: Path, tmp_path: Path) -> None:
    dense, model = LanguageModel.from_pretrained(path), LanguageModel.from_pretrained(path)
    report = calibrate_(model, Calibration(text_windows(model, TEXT, 6, 128)), depth=2)
    assert report.converted == tuple(
        f"layers.{i}.{name}"
        for i in (0, 1)
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    )
    layer = model.layers[0].mlp.gate_up_proj
    assert isinstance(layer, TernaryLinearInference)
    assert (layer.depth, layer.groups, layer.activation_bits) == (2, 1, 16)
    assert type(model.lm_head) is nn.Linear
    assert _lost(model, dense) < 0.7 * _lost(LanguageModel.from_pretrained(path, depth=2), dense)
    model.save_pretrained(tmp_path / "out")
    loaded, tokens = LanguageModel.from_pretrained(tmp_path / "out"), torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(tokens), model(tokens))


def test_groups_by_default_are_those_of_the_loader(path: Path) -> None:
    model, other = (LanguageModel.from_pretrained(path, **how) for how in ({}, {"depth": 3}))
    calibrate_(model, Calibration([torch.arange(200)[None]]), depth=3)
    shapes = [[m.scale.shape for m in own.modules() if isinstance(m, TernaryLinearInference)] for own in (model, other)]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match="no dense layer to convert"):
        calibrate_(other, Calibration([torch.arange(20)[None]]), depth=3)


def test_windows_at_even_distances(path: Path) -> None:
    model = LanguageModel.from_pretrained(path)
    text = "".join(chr(97 + i % 26) for i in range(100))
    ids = model.tokenizer.encode(text)
    for count, length, begins in ((3, 20, [0, 40, 80]), (1, 20, [0]), (9, 30, [0, 35, 70]), (4, 200, [0])):
        found = text_windows(model, text, count, length)
        assert [window.tolist() for window in found] == [[ids[b : b + length]] for b in begins]
    for arguments, message in (
        ((text, 0, 8), "at least 1, of 2 to 256 tokens, the model's context, got 0 of 8"),
        ((text, 1, 257), "got 1 of 257"),
        ((text, 1, 1), "got 1 of 1"),
        (("a", 1, 8), "the text has 1 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            text_windows(model, *arguments)
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        text_windows(model, text)
