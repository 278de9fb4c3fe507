"""The source distribution, what it holds, and the wheel that is built from it: once for all tests."""

from __future__ import annotations

import sys
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
