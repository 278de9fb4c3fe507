"""`python -m bittorch build-shim` where it cannot build; tests/packaging has it build."""

from pathlib import Path

import pytest

from bittorch import _build_shim, _extension
from tests import helpers


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "bittorch"
    folder.mkdir(parents=True)
    (folder / _extension.LIBRARY).touch()
    monkeypatch.setattr(_extension, "FOLDER", folder)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A checkout whose build does nothing but fail."""
    (tmp_path / "sources" / "csrc" / "dispatch").mkdir(parents=True)
    (tmp_path / "sources" / "setup.py").write_text("print('compile 1/1'); raise SystemExit('c++ is not installed')")
    return tmp_path / "sources"


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert _build_shim.main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("bittorch: error: ")


def test_without_sources_it_says_where_they_come_from(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refusal(capsys).startswith("this installation has no sources; unpack the source distribution of bittorch")
    assert _refusal(capsys, str(package)).startswith(f"{package} has no setup.py and csrc/dispatch; unpack ")


def test_without_kernels_it_says_so(package: Path, sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / _extension.LIBRARY).unlink()
    assert _refusal(capsys, str(sources)).startswith(f"there are no kernels in {package}; run: pip install")


def test_a_read_only_installation_is_one_line(
    package: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_build_shim.os, "access", lambda path, mode: False)  # root may write anywhere
    assert _refusal(capsys, str(sources)).startswith(f"{package} cannot be written to; run this as the user who ")


def test_a_failed_build_ends_with_its_last_line(
    package: Path, sources: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _build_shim.main([str(sources)]) == 1
    assert capfd.readouterr() == ("", "compile 1/1\nbittorch: error: c++ is not installed\n")


def test_the_program_has_it_where_the_package_does_not_load(tmp_path: Path) -> None:
    code = f"""
import sys; sys.argv = ["bittorch", "build-shim", {str(tmp_path)!r}]; sys.modules["torch"] = None
import bittorch
"""
    result = helpers.run_python(code)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"bittorch: error: {tmp_path} has no setup.py and csrc/dispatch; unpack ")
