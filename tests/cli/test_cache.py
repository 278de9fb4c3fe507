"""`bittorch cache`."""

import os
from pathlib import Path

import pytest

from bittorch.cli import default_model
from bittorch.cli.default_model import Conversion
from tests.cli import tiny_model
from tests.cli.conftest import Command

FEW = ("--max-new-tokens", 4, "--ignore-eos")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two models, one that is being written, and other things."""
    directory = tmp_path / "cache" / "bittorch"
    gguf = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.write_bytes(b"GGUF")
    for depth in (4, 3):
        default_model.store(default_model.entry(gguf, Conversion(depth)), lambda path: _write(path, 1000))
    _write(directory / f".{default_model.entry(gguf, Conversion(2)).name}.x1y2", 500)
    (directory / "chat_history").write_text("hello")
    _write(directory / "mine", 10)
    return directory


def _write(path: Path, size: int) -> None:
    path.mkdir(exist_ok=True)
    (path / "weights").write_bytes(bytes(size))


def test_the_cache_is_listed(bittorch: Command, cache: Path) -> None:  # FIELD N15
    result = bittorch("cache")
    assert result.code == 0
    assert result.out.count("smollm2-135m-instruct-depth") == 3
    assert result.out.count("unfinished") == 1
    assert f"3 models, 2.56 kB, in {cache}" in result.out
    value = bittorch("cache", "--json").json
    assert sorted(entry["bytes"] > 999 for entry in value["entries"]) == [False, True, True]
    assert value["bytes"] == sum(entry["bytes"] for entry in value["entries"])


@pytest.mark.parametrize(("made_4", "expected"), [(100, ["3", "4", "2"]), (99, ["4", "3", "2"])], ids=["tie", "older"])
def test_the_list_is_whole_models_then_by_age_then_by_name(
    bittorch: Command, cache: Path, made_4: int, expected: list[str]
) -> None:
    for depth, made in {"4": made_4, "3": 100, "2": 10}.items():
        (path,) = cache.glob(f"*depth{depth}-*")
        os.utime(path, (made, made))
    entries = bittorch("cache", "--json").json["entries"]
    assert [entry["path"].partition("-depth")[2][0] for entry in entries] == expected
    assert [entry["whole"] for entry in entries] == [True, True, False]


def test_the_cache_is_cleared_of_models_alone(bittorch: Command, cache: Path) -> None:  # FIELD N15
    result = bittorch("cache", "--clear")
    assert (result.code, result.out.startswith("3 models removed, 2.56 kB")) == (0, True)
    assert sorted(path.name for path in cache.iterdir()) == ["chat_history", "mine"]
    assert bittorch("cache").out == f"0 models, 0 B, in {cache}\n"


def test_no_cache_is_an_empty_one(bittorch: Command, tmp_path: Path) -> None:
    assert bittorch("cache", "--clear", "--json").json["entries"] == []
    assert not (tmp_path / "cache").exists()


def test_a_conversion_says_what_the_cache_takes(
    bittorch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # FIELD N15
    pytest.importorskip("tokenizers", reason="language models need bittorch[lm]")
    wide = tiny_model.make(tmp_path / "wheel", hidden_size=64, intermediate_size=128, head_dim=16)
    monkeypatch.setattr(default_model, "find_gguf", lambda: wide)
    assert "converted models take" in bittorch("run", "hello", "--raw", *FEW).err
    assert "converted models take" not in bittorch("run", "hello", "--raw", *FEW).err
    assert bittorch("cache", "--json").json["bytes"] > 1000
    assert bittorch("cache", "--clear").code == 0
    assert bittorch("run", "hello", "--raw", *FEW).code == 0
