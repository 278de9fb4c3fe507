"""`bittorch convert`."""

from pathlib import Path

import pytest
import torch

from bittorch.models import LanguageModel
from bittorch.models.io import TARGETS, open_checkpoint, save
from tests.cli import tiny_model
from tests.cli.conftest import Command, file_size_limit
from tests.models.io.tiny import model as random_model


@pytest.fixture
def ternary(bittorch: Command, model: Path, tmp_path: Path) -> Path:
    """The tiny model with one plane of trits, and a width that every format takes."""
    wide = tiny_model.make(tmp_path / "wide", hidden_size=256, intermediate_size=256, head_dim=64)
    one_plane = "--to", "bittorch", "--depth", 1, "--group-size", 0
    assert bittorch("convert", wide, tmp_path / "ternary", *one_plane).code == 0
    return tmp_path / "ternary"


def test_planes_are_those_of_the_loader(bittorch: Command, model: Path, tmp_path: Path) -> None:
    result = bittorch("convert", model, tmp_path / "planes", "--to", "bittorch", "--depth", 3, "--json")
    assert result.code == 0, result.err
    assert (result.json["tensors"], result.json["ternary"]) == (21, 14)
    tokens = torch.arange(30)[None]
    with torch.inference_mode():
        expected = LanguageModel.from_pretrained(model, depth=3)(tokens)
        assert torch.equal(LanguageModel.from_pretrained(tmp_path / "planes")(tokens), expected)
    assert result.json["bytes"] == sum(path.stat().st_size for path in (tmp_path / "planes").iterdir())


def test_planes_of_a_source_without_tokenizer_in_a_named_layout(bittorch: Command, tmp_path: Path) -> None:
    source, name = tmp_path / "x.gguf", "model.layers.0.self_attn.v_proj.weight"
    save(random_model(), source, to="gguf-i2_s")
    layout = "--i2-s-layout", "64x16"
    result = bittorch("convert", source, tmp_path / "out", "--to", "bittorch", "--head-depth", 2, *layout)
    assert result.code == 0, result.err
    with open_checkpoint(source, i2_s_layout="64x16") as before, open_checkpoint(tmp_path / "out") as after:
        assert torch.equal(before.packed(name).weight_packed, after.packed(name).weight_packed)


@pytest.mark.parametrize("to", ["bittorch", "bittorch-base3"])
def test_convert_keeps_trits_and_scales(bittorch: Command, ternary: Path, tmp_path: Path, to: str) -> None:
    result = bittorch("convert", ternary, tmp_path / "out", "--to", to, "--json")
    assert result.code == 0, result.err
    assert result.json["scale_error"] == 0
    with open_checkpoint(ternary) as before, open_checkpoint(tmp_path / "out") as after:
        name = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(before.packed(name).weight_packed, after.packed(name).weight_packed)
        assert torch.equal(before.packed(name).scale, after.packed(name).scale)


def test_convert_says_what_a_format_cannot_hold(bittorch: Command, ternary: Path, tmp_path: Path) -> None:
    result = bittorch("convert", ternary, tmp_path / "out.gguf", "--to", "gguf-tq2_0")
    assert result.code == 1
    assert len(result.err.splitlines()) <= 2
    assert "--allow-lossy" in result.err
    assert not (tmp_path / "out.gguf").exists()
    assert "--allow-lossy" in bittorch("convert", ternary, tmp_path / "out", "--to", "bitnet").err
    rounded = bittorch("convert", ternary, tmp_path / "out.gguf", "--to", "gguf-tq2_0", "--allow-lossy", "--json")
    assert rounded.code == 0
    assert 0 < rounded.json["scale_error"] < 2**-10


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq1_0"])
def test_a_dense_model_is_written_dense_only_when_told(
    bittorch: Command, model: Path, tmp_path: Path, to: str
) -> None:  # FIELD N12
    refused = bittorch("convert", model, tmp_path / "out", "--to", to)
    assert refused.code == 1
    assert f"no tensor of {model} is ternary" in refused.err
    assert "--depth" in refused.err
    assert not (tmp_path / "out").exists()
    result = bittorch("convert", model, tmp_path / "out", "--to", to, "--allow-dense", "--json")
    assert result.code == 0, result.err
    assert result.json["ternary"] == 0
    with open_checkpoint(model) as before, open_checkpoint(tmp_path / "out") as after:
        assert all(torch.equal(before.dense(name), after.dense(name)) for name in before.names)


@pytest.mark.parametrize("planes", [(), ("--depth", 2)])
def test_a_target_that_cannot_be_written_is_told_before_the_work(
    bittorch: Command, model: Path, tmp_path: Path, planes: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:  # FIELD N14
    def never(*args: object, **options: object) -> None:
        pytest.fail("the source must not be opened")

    monkeypatch.setattr("bittorch.models.io.open_checkpoint", never)
    result = bittorch("convert", model, tmp_path / "none" / "out", "--to", "bittorch", *planes)
    assert result.code == 1
    assert result.err == f"bittorch: error: {tmp_path}/none/out: {tmp_path}/none is not a directory to write it in\n"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    result = bittorch("convert", model, tmp_path / "there", "--to", "bittorch", "--overwrite", *planes)
    assert result.code == 1
    assert "besides a checkpoint it holds letter.txt" in result.err


def test_convert_replaces_only_when_told(bittorch: Command, ternary: Path, tmp_path: Path) -> None:
    arguments = "convert", ternary, tmp_path / "out", "--to", "bittorch-base3"
    assert bittorch(*arguments).code == 0
    refused = bittorch(*arguments)
    assert refused.code == 1
    assert "is there already" in refused.err
    assert bittorch(*arguments, "--overwrite").code == 0
    planes = bittorch("convert", ternary, tmp_path / "out", "--to", "bittorch", "--depth", 2)
    assert planes.code == 1
    assert "--overwrite" in planes.err


@pytest.mark.parametrize("planes", [(), ("--depth", 2)])
def test_a_full_disk_leaves_nothing_behind(
    bittorch: Command, ternary: Path, tmp_path: Path, planes: tuple[object, ...]
) -> None:
    (tmp_path / "there").mkdir()
    with file_size_limit(50_000):
        result = bittorch("convert", ternary, tmp_path / "there" / "out", "--to", "bittorch", *planes)
    assert result.code == 1
    assert "File too large" in result.err
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("--to", "onnx"), ("--to", "bittorch", "--depth", 9), ("--to", "bitnet", "--depth", 1), ("--group-size", 4)],
    ids=str,
)
def test_convert_refuses_wrong_usage(
    bittorch: Command, model: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    assert bittorch("convert", model, tmp_path / "out", *arguments).code == 2
    assert not (tmp_path / "out").exists()


def test_convert_names_a_missing_source(bittorch: Command, tmp_path: Path) -> None:
    result = bittorch("convert", tmp_path / "none", tmp_path / "out", "--to", "bittorch")
    assert (result.code, result.err) == (1, f"bittorch: error: no checkpoint at {tmp_path}/none\n")


def test_errors_name_options(bittorch: Command, model: Path, tmp_path: Path) -> None:
    result = bittorch("convert", model, tmp_path / "out", "--to", "bittorch", "--depth", 2, "--group-size", 7)
    assert result.code == 1
    assert "error: --group-size must be" in result.err
    assert "group_size" not in result.err


def test_help_lists_every_format(bittorch: Command) -> None:
    text = bittorch("convert", "--help").out
    assert all(target in text for target in TARGETS)


def _text(directory: Path) -> Path:
    path = directory / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    return path


def test_calibrated_planes_go_on_after_an_end(
    bittorch: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, planes = _text(tmp_path), ("--to", "bittorch", "--depth", 2, "--windows", 5, "--window", 100)
    arguments = "convert", model, tmp_path / "out", *planes, "--calibrate", text

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "out")

    with monkeypatch.context() as full:
        full.setattr("bittorch.models.save.save", fails)
        assert bittorch(*arguments).code == 1
    blocks = sorted(path.name for path in (tmp_path / "out.calibration").iterdir())
    assert blocks == ["block-0.safetensors", "block-1.safetensors", "conversion.json"]
    other = bittorch(*arguments, "--group-size", 8)
    assert other.code == 1
    assert "out.calibration holds another conversion: config " in other.err
    with monkeypatch.context() as done:
        done.setattr("bittorch.utils.calibration.compensated_integers", fails)
        result = bittorch(*arguments)
    assert result.code == 0, result.err
    assert f"calibrating with 500 tokens in 5 windows; what is done is kept in {tmp_path}" in result.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out", "text.txt"]
    tokens = torch.tensor([LanguageModel.from_pretrained(model).tokenizer.encode(text.read_text())[:80]])
    with torch.inference_mode():
        dense, nearest = (LanguageModel.from_pretrained(model, **how)(tokens) for how in ({}, {"depth": 2}))
        found = LanguageModel.from_pretrained(tmp_path / "out")(tokens)
    assert float((found - dense).norm()) < float((nearest - dense).norm())


def test_calibration_that_cannot_be(bittorch: Command, model: Path, tmp_path: Path) -> None:
    to, text = ("convert", model, tmp_path / "out", "--to", "bittorch"), _text(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    for code, message, arguments in (
        (2, "--calibrate chooses the planes of the layers; give --depth too", ("--calibrate", text)),
        (2, "--windows goes with --calibrate FILE", ("--depth", 2, "--windows", 4)),
        (1, "empty.txt: the text has 0 tokens", ("--depth", 2, "--calibrate", tmp_path / "empty.txt")),
        (
            1,
            "2 to 256 tokens, the model's context, got 32 of 300",
            ("--depth", 2, "--calibrate", text, "--window", 300),
        ),
        (1, "no/such", ("--depth", 2, "--calibrate", "no/such")),
    ):
        result = bittorch(*to, *arguments)
        assert result.code == code, result.err
        assert message in result.err
    assert not (tmp_path / "out").exists()
