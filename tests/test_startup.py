"""The program where the package does not load: another torch minor, no build, a zip, a bad variable. FIELD N11"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import bittorch
from bittorch import _startup
from bittorch._version import __version__
from tests import helpers

PACKAGE = Path(bittorch.__file__).parent
SHIM = Path(bittorch._C.__file__ or "")
# As pip writes it.
SCRIPT = "import sys\nfrom bittorch.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with the package, built for a torch that does not exist, and the installed command."""
    (tmp_path / "bittorch").mkdir()
    for path in PACKAGE.iterdir():
        if path != SHIM and path.name != "__pycache__":
            (tmp_path / "bittorch" / path.name).symlink_to(path)
    (tmp_path / "bittorch" / "_C.torch10.abi3.so").symlink_to(SHIM)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bittorch").write_text(SCRIPT)
    return tmp_path


def _run(
    folder: Path, *arguments: str, script: bool = False, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    program = [str(folder / "bin" / "bittorch")] if script else ["-m", "bittorch"]
    # Without site, so that no finder of an editable install has the modules that are missing here.
    paths = os.pathsep.join([str(folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    command = [sys.executable, "-S", *program, *arguments]
    return subprocess.run(command, cwd=cwd or folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "script"),
    helpers.slow_but(
        [(["info", "a"], False)], [(["info", "a"], False), (["run", "a"], True), (["--help"], False), ([], True)]
    ),
    ids=str,
)
def test_another_torch_is_one_line_for_every_command(broken: Path, arguments: list[str], script: bool) -> None:
    result = _run(broken, *arguments, script=script)  # FIELD N11
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("bittorch: error: this bittorch is for torch 1.0, and torch ")
    assert line.endswith("python -m bittorch build-shim")


@pytest.mark.slow
@pytest.mark.parametrize("script", [False, True], ids=["module", "script"])
def test_the_version_is_printed_all_the_same(broken: Path, script: bool) -> None:  # FIELD N11
    result = _run(broken, "--version", script=script)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"bittorch {__version__}\n", "")


def test_doctor_diagnoses_another_torch(broken: Path) -> None:  # FIELD N11
    import torch

    result = _run(broken, "doctor", script=True)
    assert (result.returncode, result.stderr) == (1, "")
    first, second, third, problem, last = result.stdout.splitlines()
    assert first == f"bittorch   {__version__}, for torch 1.0, in {broken / 'bittorch'}"
    assert second == f"torch      {torch.__version__}"
    assert sys.executable in third
    assert problem.startswith("problem    this bittorch is for torch 1.0, and torch ")
    assert "nothing else was tested" in last


@pytest.mark.slow
def test_doctor_diagnoses_in_json(broken: Path) -> None:
    result = _run(broken, "doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["version"], report["ok"]) == (1, __version__, False)
    assert "this bittorch is for torch 1.0, and torch" in report["checks"][0]["problem"]


@pytest.mark.slow
def test_debug_shows_the_traceback_too(broken: Path) -> None:
    result = _run(broken, "info", "a", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("bittorch: error: ")


@pytest.mark.slow
def test_without_torch_one_line_says_so(broken: Path) -> None:
    (broken / "torch.py").write_text("raise ModuleNotFoundError('No module', name='torch')\n")
    result = _run(broken, "info", "a")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("bittorch: error: bittorch needs PyTorch")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_bad_variable_is_one_line(tmp_path: Path) -> None:
    result = _run(PACKAGE.parent, "info", "a", BITTORCH_PACKED_KERNEL="nosuch")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("bittorch: error: BITTORCH_PACKED_KERNEL must be one of auto, ")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_import_still_raises(broken: Path) -> None:
    for code in ("import bittorch", "import sys; sys.argv = ['/usr/bin/other']; import bittorch.cli"):
        result = subprocess.run([sys.executable, "-c", code], cwd=broken, capture_output=True, text=True, timeout=300)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("ImportError: this bittorch is for torch 1.0, ")


@pytest.mark.slow
def test_a_zip_is_refused_in_one_line(tmp_path: Path) -> None:  # FIELD R18
    archive = tmp_path / "it.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in PACKAGE.rglob("*"):
            if path.suffix in (".py", ".so"):
                target.write(path, path.relative_to(PACKAGE.parent))
    result = _run(archive, "info", "a", cwd=tmp_path)
    assert result.returncode == 1
    assert "circular" not in result.stderr
    message = (
        f"bittorch: error: bittorch cannot be imported from the archive {archive}: its extension is a shared library"
    )
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_missing_or_foreign_extension_is_named(broken: Path) -> None:
    (broken / "bittorch" / "_C.torch10.abi3.so").unlink()
    assert f"extension is not built in {broken / 'bittorch'}" in _run(broken, "info", "a").stderr
    (broken / "bittorch" / SHIM.name).write_bytes(b"no shared library")
    result = _run(broken, "info", "a")
    assert "bittorch's extension does not load: " in result.stderr
    assert f"{SHIM.name} is for no machine: it is no shared library" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "orig_argv", "program"),
    [
        (["-m", "doctor"], ["python", "-m", "bittorch", "doctor"], True),
        (["-m"], ["python", "-X", "dev", "-mbittorch"], True),
        (["-m"], ["python", "-Im", "bittorch"], True),
        (["-m"], ["python", "-m", "pytest", "bittorch"], False),
        (["/venv/bin/bittorch", "info"], ["/venv/bin/python", "/venv/bin/bittorch", "info"], True),
        (["/srv/train.py", "bittorch"], ["python", "/srv/train.py", "bittorch"], False),
        (["-c"], ["python", "-c", "import bittorch"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_who_imports_the_package(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], orig_argv: list[str], program: bool
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert _startup.is_program() == program
