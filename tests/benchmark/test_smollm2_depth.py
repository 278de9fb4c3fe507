"""benchmark/accuracy/smollm2_depth.py with a tiny random model in a GGUF file of its own."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bittorch import quantize_model
from tests.benchmark import tiny_llama
from tests.benchmark.tiny_llama import gguf

FOLDER = Path(__file__).parents[2] / "benchmark" / "accuracy"
TEXT = "a line of 12 words, and 3 more\n" * 40


@pytest.fixture(scope="module", autouse=True)
def _scripts_are_importable() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = before


def _script() -> ModuleType:
    import smollm2_depth

    return smollm2_depth


def _llama() -> ModuleType:
    import gguf_llama

    return gguf_llama


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_model_of_a_gguf_file_is_the_model_that_was_written(tiny_gguf: Path) -> None:
    model, x = _llama().model_of(gguf.GGUFReader(tiny_gguf)), torch.arange(48)[None]
    expected = tiny_llama.model()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(model(x).logits, expected(x).logits)


def test_tokens_are_bytes_merges_and_single_digits(tiny_gguf: Path) -> None:
    words = b"two 123\n"
    expected = [words[0], 256, *words[3:]]  # no 12: digits stay alone
    assert _llama().tokens_of(gguf.GGUFReader(tiny_gguf), words.decode()) == expected
    accents = "é ü\t"
    assert _llama().tokens_of(gguf.GGUFReader(tiny_gguf), accents) == list(accents.encode())


@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_windows_score_every_token_but_the_first_once(count: int, window: int, stride: int) -> None:
    stride, scored = min(window, stride), []
    for piece, last in _llama().windows(torch.arange(count), window, stride):
        assert 1 <= last < len(piece) <= window + 1
        scored += piece[-last:].tolist()
    assert scored == list(range(1, count))


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (16, 16), (16, 5)])
def test_nll_is_that_of_the_logits(window: int, stride: int) -> None:
    model, tokens = tiny_llama.model(), torch.randint(258, (41,), generator=torch.Generator().manual_seed(2))
    expected = []
    for target in range(1, 41):
        start = 0
        while start + window < target:
            start += stride
        with torch.no_grad():
            logits = model(tokens[None, start:target]).logits[0, -1].double()
        expected.append(-logits.log_softmax(0)[tokens[target]].item())
    ticks: list[int] = []
    assert _llama().nll(model, tokens, window, stride, ticks.append) == pytest.approx(sum(expected) / 40, rel=1e-5)
    assert sum(ticks) == 40


def test_round_to_nearest_against_its_formula() -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    for bits in (3, 4):
        for group in (None, 8):
            rows = weight.double().reshape(-1, group or 32)
            scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            expected = ((rows / scale).round() * scale).view(6, 32)
            torch.testing.assert_close(_script().round_to_nearest(weight, bits, group).double(), expected)
            low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
            step = (high - low) / (2**bits - 1)
            made = _script().round_to_nearest(weight, bits, group, True).double()
            torch.testing.assert_close(
                made, (((rows - low) / step).round() * step + low).view(6, 32), rtol=0, atol=1e-6
            )


def _run(path: Path, tmp_path: Path, *more: str) -> dict[str, Any]:
    data, result = tmp_path / "text.txt", tmp_path / "result.json"
    data.write_text(TEXT)
    files = ["--data", str(data), "--gguf", str(path), "--json", str(result), "--quiet"]
    sizes = ["--tokens", "65", "--window", "32", "--stride", "16", "--calibration", "64", "--packed-tokens", "20"]
    _script().main([*files, *sizes, *more])
    return json.loads(result.read_text())


@pytest.mark.slow
def test_table_from_a_run(tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _run(
        tiny_gguf, tmp_path, "--rows", "dense", "depth 4, row", "automatic 7.2", "int4 round to nearest, group"
    )
    found = {row["row"]: row for row in record["rows"]}
    assert list(found) == [
        "dense",
        "depth 4, row",
        "int4 round to nearest, group 64",
        "automatic 7.2 bits, row",
        "depth 4, row, with the head",
    ]
    model = tiny_llama.model()
    script, llama = _script(), _llama()
    tokens = torch.tensor(llama.tokens_of(gguf.GGUFReader(tiny_gguf), TEXT))[:65]
    for label, other in (("dense", model), ("depth 4, row", quantize_model(model, depth=4, skip="lm_head"))):
        assert found[label]["perplexity"] == pytest.approx(math.exp(llama.nll(other, tokens, 32, 16, id)), rel=1e-4)
    row = found["depth 4, row"]
    weights = sum(w.numel() for name, w in model.named_parameters() if "proj" in name)
    rows = sum(len(w) for name, w in model.named_parameters() if "proj" in name)
    assert row["bits"] == pytest.approx(8 + 4 * 32 * rows / weights)
    assert row["packed_bits"] == pytest.approx(6.4 + 32 * rows / weights)
    assert abs(row["packed_nll_difference"]) < 1e-5
    assert found["automatic 7.2 bits, row"]["bits"] <= 7.2
    assert found["int4 round to nearest, group 64"]["bits"] == 4.5
    assert {"command", "torch", "name"} <= set(record["machine"])
    out = capsys.readouterr().out
    assert script.table(record["rows"]) in out
    assert "| dense |" in out


def test_calibrated_integers_lose_less_than_those_rounded_to_nearest() -> None:
    from bittorch import Calibration

    script, model = _script(), tiny_llama.model()
    ids = torch.randint(258, (4, 1, 48), generator=torch.Generator().manual_seed(1))
    layers = script.block_layers(model)
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    made = script.calibrated_integers(model, 3, 32, Calibration(list(ids)))
    assert all(torch.equal(layer.weight, weights[name]) for name, layer in layers.items())
    with torch.no_grad():
        dense, lost = model(ids[0]).logits, []
        for own in (made, {name: script.round_to_nearest(w, 3, 32) for name, w in weights.items()}):
            for name, layer in layers.items():
                layer.weight.data = own[name]
            lost.append(float((model(ids[0]).logits - dense).norm()))
    assert lost[0] < 0.8 * lost[1]
    scale = made["model.layers.0.mlp.up_proj"].view(-1, 32)
    assert max(len(row.unique()) for row in scale) <= 7


@pytest.mark.slow
def test_calibrated_rows(tiny_gguf: Path, tmp_path: Path) -> None:
    windows = "--calibrated-from", "70", "--calibrated-windows", "6", "--calibrated-length", "40"
    keep = "--keep", str(tmp_path / "keep")
    rows = "--rows", "depth 2, group 64", "int3 calibrated"
    record = _run(tiny_gguf, tmp_path, *rows, *windows, *keep)
    found = {row["row"]: row for row in record["rows"]}
    assert set(found) == {"depth 2, group 64", "depth 2, group 64, calibrated", "int3 calibrated, group 64"}
    calibrated = found["depth 2, group 64, calibrated"]
    assert calibrated["calibration"] == {"from": 70, "windows": 6, "length": 40}
    assert calibrated["bits"] == found["depth 2, group 64"]["bits"]
    assert calibrated["relative_error"] != found["depth 2, group 64"]["relative_error"]
    assert sorted(path.name for path in (tmp_path / "keep").iterdir()) == [
        "depth-2-group-64-calibrated",
        "int3-calibrated-group-64",
    ]


@pytest.mark.slow
def test_second_run_adds_only_what_is_missing(tiny_gguf: Path, tmp_path: Path) -> None:
    first = _run(tiny_gguf, tmp_path, "--rows", "dense")
    second = _run(tiny_gguf, tmp_path, "--rows", "dense", "int3 round to nearest, row")
    assert second["rows"][0] == first["rows"][0]
    assert [row["row"] for row in second["rows"]] == ["dense", "int3 round to nearest, row"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    with pytest.raises(SystemExit, match="other settings"):
        _run(tiny_gguf, tmp_path, "--tokens", "64")


def test_documented_table_is_that_of_the_results() -> None:
    record = json.loads((FOLDER.parent / "results" / "smollm2_depth.json").read_text())
    text = (FOLDER.parents[1] / "docs" / "notes" / "trit_depth.md").read_text()
    shown = text.split("<!-- table:begin -->\n")[1].split("\n<!-- table:end -->")[0]
    assert shown == _script().table(record["rows"])


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _script().parse_args(["--data", str(tmp_path / "none.txt")])
    assert "validation split of WikiText-2" in capsys.readouterr().err
