"""The package with every Python that it is for and that is found here: python3.10 to python3.13 on PATH or of pyenv.

PyTorch is seldom there for more than one of them, so they load the extension beside the libraries of this environment's
torch, which do not depend on Python, and everything else that needs no torch. FIELD N1
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import bittorch
from bittorch import _C
from bittorch._version import __version__
from tests.packaging.common import PIP, ROOT, run

MINORS = (10, 11, 12, 13)
KERNELS = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("bittorch._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.force_kernel("ternary_linear_packed", "scalar")
chosen = module.chosen_kernel("ternary_linear_packed", "cpu", "float32", None)
module.force_kernel("ternary_linear_packed", None)
try:
    module.force_kernel("ternary_linear_packed", "nosuch")
except ValueError as error:
    chosen += f": {error}"
print(json.dumps([module.kernels(), module.cpu_features(), chosen]))
"""


@functools.cache
def _python(minor: int) -> str | None:
    """A Python 3.minor that runs; pyenv's links on PATH stand for versions that may not be chosen."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [sys.executable, shutil.which(f"python3.{minor}")]
    places += sorted(map(str, pyenv.glob(f"versions/3.{minor}.*/bin/python3")))
    for place in filter(None, places):
        command = [place, "-c", "import sys; print(*sys.version_info[:2])"]
        if subprocess.run(command, capture_output=True, text=True).stdout == f"3 {minor}\n":
            return place
    return None


FOUND = [minor for minor in MINORS if _python(minor)]
pytestmark = pytest.mark.parametrize("minor", FOUND)


@pytest.mark.slow
def test_every_source_compiles(minor: int, tmp_path: Path) -> None:
    folders = [str(ROOT / name) for name in ("bittorch", "tests", "examples", "benchmark", "setup.py")]
    cache = {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    run(_python(minor), "-W", "error", "-m", "compileall", "-q", "-f", *folders, cwd=tmp_path, **cache)


def test_the_extension_loads_and_answers(minor: int, tmp_path: Path) -> None:
    libraries = {"LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    printed = run(_python(minor), "-c", KERNELS, _C.__file__, cwd=tmp_path, **libraries)
    kernels, features, chosen = json.loads(printed)
    assert kernels == _C.kernels()
    assert features == list(_C.cpu_features())
    assert chosen.startswith("scalar: ")
    assert "nosuch" in chosen


@pytest.mark.slow
def test_pip_takes_the_wheel(minor: int, wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    options = ("install", "--no-index", "--no-deps", "--no-compile", "--target", target)
    run(_python(minor), *PIP, *options, wheel, cwd=tmp_path)
    assert (target / "bittorch" / Path(_C.__file__ or "").name).is_file()


def test_metadata_is_made_without_torch(minor: int, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    purelib = Path(sysconfig.get_path("purelib"))
    for path in purelib.iterdir():
        if path.name.startswith(("setuptools", "pkg_resources", "_distutils_hack")):
            (tmp_path / "packages" / path.name).symlink_to(path)
    command = [_python(minor), "-I", "-c", EGG_INFO.format(packages=str(tmp_path / "packages"))]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "bittorch.egg-info" / "PKG-INFO").read_text()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nRequires-Dist: torch>=2.8\n" in text or "\nRequires-Dist: torch==" in text


EGG_INFO = """
import sys
sys.path.insert(0, {packages!r})
sys.argv = ["setup.py", "--quiet", "egg_info", "--egg-base", sys.argv[1]]
exec(compile(open("setup.py").read(), "setup.py", "exec"), {{"__name__": "__main__", "__file__": "setup.py"}})
"""


def test_without_torch_the_program_says_so(minor: int, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('none', name='torch')\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(bittorch.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}
    for arguments, code in ((("--version",), 0), (("doctor",), 1), (("info", "a"), 1)):
        command = [str(_python(minor)), "-S", "-m", "bittorch", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert (f"bittorch {__version__}" if code == 0 else "bittorch needs PyTorch") in done.stdout + done.stderr


def test_the_stages_run_on_the_standard_library(minor: int, tmp_path: Path) -> None:
    command = [str(_python(minor)), "-I", str(ROOT / "tests" / "run_stages.py"), "nosuch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("stages are environment, extension, native")
