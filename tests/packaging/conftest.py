"""The source distribution, what it holds, and the wheel that is built from it: once for all tests."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from tests.packaging.common import ALONE, PIP, checkout, run, same_build, take_objects


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = checkout(tmp_path_factory.mktemp("checkout"))
    run(sys.executable, "setup.py", "--quiet", "sdist", cwd=tree)
    (archive,) = (tree / "dist").iterdir()
    return archive


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xf", sdist, cwd=folder)
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist's contents and nothing else."""
    take_objects(unpacked)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, *PIP, "wheel", *ALONE, "-w", out, unpacked, cwd=out, **same_build())
    (built,) = out.iterdir()
    return built


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The Python of an environment without bittorch, which sees the requirements that are installed here."""
    # pip and setuptools are among the requirements here; up to Python 3.11 a setuptools of its own would be too old.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # The checkout that may be installed here for development stays out: of a .pth file's folder no .pth file is read.
    (Path(site) / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
