"""What packaging/build_wheel.py and setup.py do for another machine, without the tools of `make wheel`.

Fake compilers stand for those of the other machine: a wheel for aarch64 takes ten minutes of a real one.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.common import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="an installed package has no setup.py")
COMPILER = '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
VERSION = "".join(
    f"#define TORCH_VERSION_{name} {number}\n" for name, number in (("MAJOR", 2), ("MINOR", 99), ("PATCH", 1))
)


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "packaging" / "build_wheel.py"))


def _tree(folder: Path) -> Path:
    """The sources of the extension, which is all that build_ext reads."""
    for name in ("csrc", "bittorch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def _build(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", "lib"]
    environment = {**os.environ, "BITTORCH_CUDA": "0", **variables}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_build_for_another_machine_takes_its_kernels_and_its_torches(tmp_path: Path) -> None:
    tree, cc = _tree(tmp_path / "tree"), tmp_path / "cc"
    cc.write_text(COMPILER)
    cc.chmod(0o755)
    version = tmp_path / "torch" / "include" / "torch" / "headeronly" / "version.h"
    version.parent.mkdir(parents=True)
    version.write_text(VERSION)
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    variables = {"CC": str(cc), "CXX": str(cc), "BITTORCH_MACHINE": other}
    done = _build(tree, **variables, BITTORCH_TORCHES=str(tmp_path / "torch"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tree / "lib/bittorch").glob("*.so")} == {
        "libbittorch_kernels.so",
        "_C.torch299.abi3.so",
    }
    assert not list((tree / "build/objects").glob("*.o"))  # where those of this machine are
    kernels = {path.name for path in (tree / "build/objects" / other).glob("*.o")}
    assert any("_neon" in name for name in kernels) == (other == "aarch64")
    assert any("_avx" in name for name in kernels) == (other == "x86_64")
    assert (tree / "build/objects" / other / "torch299" / "dispatch_library.cpp.o").exists()
    refused = _build(tree, **variables)
    last = refused.stderr.splitlines()[-1]
    assert (refused.returncode, last) == (
        1,
        f"BITTORCH_MACHINE={other} needs the folder of a torch for it in BITTORCH_TORCHES",
    )


def test_a_torch_of_another_machine_is_refused(script: dict[str, Any], tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.10.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with pytest.raises(SystemExit, match=r"is a torch for manylinux_2_28_x86_64, and the wheel is to be for aarch64"):
        script["unpack"](wheel, "aarch64")


def test_a_missing_torch_is_one_line(script: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^there is no nowhere/torch-2\.10\.0-cp311-cp311-linux_aarch64\.whl$"):
        script["main"](["--machine", "aarch64", "nowhere/torch-2.10.0-cp311-cp311-linux_aarch64.whl"])
    with pytest.raises(
        SystemExit, match=r"^torch==2\.10\.0 is not named as a wheel is: NAME-VERSION-PYTHON-ABI-PLATFORM\.whl$"
    ):
        script["main"](["--machine", "aarch64", "torch==2.10.0"])
    script["main"].__globals__["HOST"] = "x86_64"
    with pytest.raises(SystemExit):
        script["main"](["--machine", "aarch64"])
    assert "--machine aarch64 needs FILE, a wheel of torch for that machine" in capsys.readouterr().err


def test_of_a_torch_what_shims_need_is_unpacked(script: dict[str, Any], tmp_path: Path) -> None:
    script["unpack"].__globals__["WORK"] = tmp_path / "work"
    wheel = tmp_path / "torch-2.10.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl"
    names = ("include/a/b.h", "lib/libc10.so", "lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libother.so", "x.py")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(f"torch/{name}", name)
    for _ in range(2):
        folder = script["unpack"](wheel, "aarch64")
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found == set(names[:4])


def test_a_missing_cross_compiler_is_one_line(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    script["compilers"].__globals__["HOST"] = "x86_64"
    with pytest.raises(SystemExit) as info:
        script["compilers"]("aarch64")
    assert str(info.value) == (
        "a wheel for aarch64 needs aarch64-linux-gnu-gcc and aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"
    )
    assert script["compilers"]("x86_64") == {}


@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("nm") is None, reason="no c++ and nm")
def test_a_shim_that_its_torch_cannot_load_is_found(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    code = {
        "lib/libc10.so": "namespace c10 { int there() { return 1; } }",
        "lib/libtorch_cpu.so": "namespace at { int here(int) { return 1; } }",
        "lib/libtorch.so": "",
        "shim.so": """
namespace c10 { int there(); int gone(long); __attribute__((weak)) int perhaps(); }
namespace at { int here(int); }
int elsewhere();
int shim() { return c10::there() + c10::gone(1) + at::here(1) + elsewhere() + (c10::perhaps ? c10::perhaps() : 0); }
""",
    }
    for name, text in code.items():
        command = ["c++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(tmp_path / name)]
        subprocess.run(command, input=text, text=True, check=True)
    assert script["unresolved"](tmp_path / "shim.so", tmp_path) == ["_ZN3c104goneEl"]
