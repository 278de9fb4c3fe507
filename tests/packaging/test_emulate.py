"""`make test-aarch64` where it cannot run; its real run needs minutes, root's rights and debootstrap."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bittorch import _C
from tests.packaging.common import ROOT

SCRIPT = ROOT / "packaging" / "emulate.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="an installed package has no packaging/")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("ci", "code"), [("0", 0), ("1", 1)])
def test_a_missing_tool_is_one_line(tmp_path: Path, ci: str, code: int) -> None:
    environment = {**os.environ, "PATH": "/nowhere", "BITTORCH_CI": ci}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "root"), "a.whl", "b.whl"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("not run: no qemu-aarch64 (package qemu-user), no debootstrap (package debootstrap)")
    assert done.stdout.endswith("; not tested: the wheel for aarch64\n")
    assert not list(tmp_path.iterdir())


def test_a_root_that_was_made_needs_an_emulator_alone(script: dict[str, Any], tmp_path: Path) -> None:
    script["missing"].__globals__["shutil"] = SimpleNamespace(which=lambda name: None)
    (tmp_path / "debian.made").touch()
    assert list(script["missing"](tmp_path)) == ["no qemu-aarch64 (package qemu-user)"]


def test_a_wheel_that_is_not_there_says_what_makes_it(script: dict[str, Any], tmp_path: Path) -> None:
    script["main"].__globals__["missing"] = lambda root: []
    with pytest.raises(SystemExit, match=r"there is no .*a\.whl; make it by: make wheel-aarch64"):
        script["main"](tmp_path / "root", tmp_path / "a.whl", tmp_path / "b.whl")
    assert not list(tmp_path.iterdir())


def test_every_op_is_compared_with_its_definition(script: dict[str, Any]) -> None:
    assert set(script["PARITY"]) >= {row["op"] for row in _C.kernels()}
    for op, names in script["PARITY"].items():
        text = (ROOT / "tests" / "ops" / f"test_{op}.py").read_text()
        assert names
        assert [name for name in names if f"\ndef test_{name}(" not in text] == []


@pytest.mark.slow
def test_few_cases_keep_each_test_and_each_kernel(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("""
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("variant", ["scalar", "neon"])
def test_of_kernels(variant, n):
    assert n == 1

@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_one(n):
    assert n == 1

def test_plain():
    pass
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "few_cases", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "packaging"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "4 passed, 6 deselected" in done.stdout
