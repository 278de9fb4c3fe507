"""`bittorch eval`."""

import math
from pathlib import Path

import pytest
import torch

from bittorch.models import LanguageModel
from tests.cli.conftest import Command

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 6


def test_ppl_of_one_window_is_that_of_the_logits(bittorch: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT[:200])
    language_model = LanguageModel.from_pretrained(model)
    tokens = torch.tensor([language_model.tokenizer.encode(TEXT[:200], add_special_tokens=False)])
    with torch.inference_mode():
        logits = language_model(tokens).double()
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    result = bittorch("eval", "ppl", tmp_path / "text.txt", "--model", model, "--json")
    assert result.code == 0, result.err
    assert result.json["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert result.json["tokens"] == 199
    assert result.json["bytes"] == 200


def test_ppl_takes_window_stride_and_part_of_a_file(bittorch: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ü" + TEXT)
    arguments = "eval", "ppl", tmp_path / "text.txt", "--model", model
    told = bittorch(*arguments, "--window", 64, "--stride", 16, "--json", "--max-bytes", 200).json
    assert (told["window"], told["stride"], told["bytes"], told["tokens"]) == (64, 16, 200, 199)
    cut = bittorch(*arguments, "--json", "--max-bytes", 1)
    assert cut.code == 1
    assert "has no text" in cut.json["error"]
    plain = bittorch(*arguments, "--window", 64, "--stride", 16)
    assert plain.out.startswith("perplexity ")
    assert "window 64, stride 16" in plain.out


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", "no text"), (b" \n", "no text"), (b"a", "at least two"), (b"ab\xff", "byte 0xff at offset 2")],
)
def test_ppl_refuses_what_cannot_be_scored(
    bittorch: Command, model: Path, tmp_path: Path, data: bytes, expected: str
) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    result = bittorch("eval", "ppl", tmp_path / "text.txt", "--model", model)
    assert result.code == 1
    assert expected in result.err


@pytest.mark.parametrize(
    "option", [("--window", 257), ("--window", 1), ("--stride", 0), ("--window", 8, "--stride", 9)]
)
def test_ppl_refuses_windows_that_do_not_fit(
    bittorch: Command, model: Path, tmp_path: Path, option: tuple[object, ...]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    result = bittorch("eval", "ppl", tmp_path / "text.txt", "--model", model, *option)
    assert result.code == 2  # FIELD N15
    assert "must be at" in result.err
