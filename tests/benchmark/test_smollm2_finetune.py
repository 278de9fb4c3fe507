"""benchmark/accuracy/smollm2_finetune.py with a tiny random model in a GGUF file of its own."""

import copy
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bittorch
from tests.benchmark import tiny_llama

pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture
def options(tmp_path: Path, scripts: None) -> list[str]:
    for name, text in (
        ("wikitext2-valid.txt", "a line of words\n" * 60),
        ("tinyshakespeare.txt", "To be, or not\n" * 60),
    ):
        (tmp_path / name).write_text(text)
    files = ["--data", str(tmp_path), "--gguf", str(tiny_llama.write(tmp_path / "tiny.gguf"))]
    sizes = ["--steps", "12", "--window", "16", "--scored", "65", "--points", "3", "--lr", "2e-3"]
    return [*files, *sizes, "--json", str(tmp_path / "result.json"), "--keep", str(tmp_path / "kept")]


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def _perplexity(model: nn.Module, path: Path, text: str) -> float:
    llama = importlib.import_module("gguf_llama")
    ids = torch.tensor(llama.tokens_of(tiny_llama.gguf.GGUFReader(path), text))
    return math.exp(llama.nll(model, ids[len(ids) * 9 // 10 :][:65], 16, 16, id))


@pytest.mark.slow
def test_the_student_nears_its_teacher_and_is_exported(options: list[str], tmp_path: Path) -> None:
    script = importlib.import_module("smollm2_finetune")
    script.main([*options, "--out", str(tmp_path / "out"), "--prompt", "a line"])
    record, text = _record(tmp_path), (tmp_path / "wikitext2-valid.txt").read_text()
    model = tiny_llama.model()
    assert record["before"]["wikitext2-valid"] == pytest.approx(
        _perplexity(model, tmp_path / "tiny.gguf", text), rel=1e-4
    )
    start = copy.deepcopy(model)
    bittorch.quantize_(start.model, script.CONFIG)
    expected = _perplexity(start.eval(), tmp_path / "tiny.gguf", text)
    assert record["curve"][0]["wikitext2-valid"] == pytest.approx(expected, rel=1e-4)
    assert [point["step"] for point in record["curve"]] == [0, 4, 8, 12]
    assert record["trained_tokens"] == 12 * 4 * 16
    assert record["exported"]["prompt"] == "a line"
    opened = bittorch.models.LanguageModel.from_pretrained(tmp_path / "out")
    assert opened.generate("a line", max_new_tokens=48, temperature=0)[0] == record["exported"]["answer"]
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("smollm2_finetune")
    script.main(options)
    whole = [{**point, "seconds": 0} for point in _record(tmp_path)["curve"]]
    monkeypatch.setattr(
        script, "Kept", lambda path, what, seconds: importlib.import_module("keep").Kept(path, what, 0.0)
    )
    batch_of = script.batch_of

    def stopped(texts: list[torch.Tensor], step: int, *sizes: int) -> torch.Tensor:
        if step == 7:
            raise KeyboardInterrupt
        return batch_of(texts, step, *sizes)

    monkeypatch.setattr(script, "batch_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        script.main(options)
    with pytest.raises(SystemExit, match=r"is of another run: lr was 0\.002 and is 1\.0"):
        script.main([*options, "--lr", "1"])
    monkeypatch.setattr(script, "batch_of", batch_of)
    script.main(options)
    assert [{**point, "seconds": 0} for point in _record(tmp_path)["curve"]] == whole
