"""The wheel for others: linked for glibc 2.28, its platform and ABI checked, installed, and the snippet of README run.

It has the shim of this torch alone; `make wheel` adds those of others. The tools are those that `make wheel` installs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.common import INSTALL, PIP, ROOT, attempt, run, take_objects

MISSING = [name for name in ("ziglang", "auditwheel", "abi3audit") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`make wheel` installs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="session")
def manylinux(unpacked: Path) -> Path:
    """Built by the script of the sdist."""
    take_objects(unpacked)
    run(sys.executable, "packaging/build_wheel.py", cwd=unpacked, BITTORCH_CUDA="0")
    (built,) = (unpacked / "dist").glob("*manylinux*.whl")
    return built


def test_it_runs_the_snippet_of_the_readme(manylinux: Path, empty: Path) -> None:
    run(empty, *PIP, *INSTALL, manylinux, cwd=manylinux.parent)
    snippet, printed = re.findall(r"^```(?:python)?\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[:2]
    assert "import bittorch" in snippet
    assert run(empty, "-c", snippet, cwd=manylinux.parent) == printed


def test_its_name_and_its_libraries_ask_for_no_more_than_glibc_2_28(manylinux: Path, tmp_path: Path) -> None:
    assert manylinux.name.endswith("-cp310-abi3-manylinux_2_28_x86_64.whl")
    with zipfile.ZipFile(manylinux) as archive:
        libraries = [archive.extract(name, tmp_path) for name in archive.namelist() if name.endswith(".so")]
    assert len(libraries) == 2
    for library in libraries:
        versions = re.findall(r"GLIBC_2\.(\d+)", run("readelf", "--version-info", "--wide", library, cwd=tmp_path))
        assert 0 < max(map(int, versions)) <= 28


def test_a_wheel_of_another_platform_is_refused_by_pip(manylinux: Path, empty: Path, tmp_path: Path) -> None:
    other = tmp_path / manylinux.name.replace("x86_64", "aarch64")
    other.write_bytes(manylinux.read_bytes())
    done = attempt(empty, *PIP, *INSTALL, other, cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a supported wheel on this platform" in done.stderr


def test_the_checks_refuse_what_was_linked_for_this_machine(wheel: Path, tmp_path: Path) -> None:
    """Of a wheel with the name alone: auditwheel finds the newer glibc, unless this machine's is as old as that."""
    if os.confstr("CS_GNU_LIBC_VERSION") in ("glibc 2.28", "glibc 2.29", "glibc 2.30", "glibc 2.31"):
        pytest.skip("what is linked here runs with glibc 2.31")
    check = runpy.run_path(str(ROOT / "packaging" / "build_wheel.py"))["check"]
    assert any(text.startswith("auditwheel: ") for text in check(wheel))
