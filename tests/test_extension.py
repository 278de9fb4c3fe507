import re
import subprocess
from pathlib import Path

import pytest
import torch

from bittorch import _extension
from tests import helpers


@pytest.mark.parametrize(
    ("version", "minor"),
    [("2.13.0+cpu", (2, 13)), ("2.9.1", (2, 9)), ("2.14.0a0+git123", (2, 14)), ("2.8.0+cu128", (2, 8))],
)
def test_minor_version(version: str, minor: tuple[int, int]) -> None:
    assert _extension.minor_version(version) == minor


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shims of 2.9, 2.12 and 2.13 that _extension takes for the package's."""
    for minor in ((2, 13), (2, 9), (2, 12)):
        (tmp_path / _extension.shim_name(minor)).write_bytes(b"")
    (tmp_path / "_C.pyi").touch()
    (tmp_path / _extension.LIBRARY).write_bytes(b"")
    monkeypatch.setattr(_extension, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("running", "name"),
    [("2.13.1+cu130", "_C.torch213.abi3.so"), ("2.9.0", "_C.torch29.abi3.so"), ("2.12.0", "_C.torch212.abi3.so")],
)
def test_the_shim_of_the_running_minor_is_taken(package: Path, running: str, name: str) -> None:
    assert _extension.find_shim(running) == package / name


@pytest.mark.parametrize(
    ("running", "message"),
    [
        ("2.14.1", "this bittorch is for torch 2.9, 2.12 and 2.13, and torch 2.14.1 is running; make it fit by: "),
        ("2.10.0", "this bittorch is for torch 2.9, 2.12 and 2.13, and torch 2.10.0 is running; make it fit by: "),
        ("3.13.0", "this bittorch is for torch 2.9, 2.12 and 2.13, and torch 3.13.0 is running; make it fit by: "),
        ("2.7.1+cpu", "torch 2.7.1+cpu is running, and bittorch needs 2.8 or later"),
    ],
)
def test_no_shim_is_one_clear_line_with_those_there_are(package: Path, running: str, message: str) -> None:
    with pytest.raises(ImportError) as info:
        _extension.find_shim(running)
    assert str(info.value).startswith(message)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("missing", ["kernels", "shims"])
def test_missing_build_says_how_to_build(package: Path, missing: str) -> None:
    for path in package.glob("lib*" if missing == "kernels" else "_C.torch*"):
        path.unlink()
    with pytest.raises(ImportError, match=r"extension is not built in .*; run: pip install --no-build-isolation"):
        _extension.load()


def test_a_library_for_another_machine_is_named(package: Path) -> None:
    shim = package / "_C.torch213.abi3.so"
    for path in (shim, package / _extension.LIBRARY):
        path.write_bytes(b"\x7fELF\2\1\1" + bytes(11) + (22).to_bytes(2, "little"))  # IBM S/390
    with pytest.raises(ImportError, match=r"kernels\.so is for machine 22, and this is \w+; install bittorch's wheel"):
        _extension._load_shim(shim)


def test_an_old_c_library_is_named() -> None:
    shim = _extension.find_shim(torch.__version__)
    error = ImportError("/lib/libc.so.6: version `GLIBC_2.99' not found (required by x)")
    text = _extension.explain(error, shim)
    assert text.startswith("it needs the C library 2.99 or later; this system has ")
    assert "build it here" in text


def test_a_shim_beside_other_kernels_does_not_load(tmp_path: Path) -> None:
    shim = _extension.find_shim(torch.__version__)
    kernels = (_extension.FOLDER / _extension.LIBRARY).read_bytes()
    own = _interface(kernels, shim.read_bytes())
    (tmp_path / _extension.LIBRARY).write_bytes(kernels.replace(own, b"0123456789ab"))
    (tmp_path / shim.name).write_bytes(shim.read_bytes())
    code = f"""
import sys, types, torch
from pathlib import Path
sys.modules["bittorch"] = package = types.ModuleType("bittorch")
package.__path__ = [{str(_extension.FOLDER)!r}]
from bittorch import _extension
_extension.FOLDER = Path({str(tmp_path)!r})
_extension._load_shim(_extension.FOLDER / {shim.name!r})
"""
    result = helpers.run_python(code)
    last = result.stderr.strip().splitlines()[-1]
    assert f"the shim goes with the kernels {own.decode()}, and beside it are 0123456789ab; rebuild it" in last


def _interface(*libraries: bytes) -> bytes:
    """The hash that kernels and shim hold alike."""
    (common,) = set.intersection(*(set(re.findall(rb"\0([0-9a-f]{12})\0", content)) for content in libraries))
    return common


def test_the_library_shows_what_the_shim_asks_for_alone() -> None:
    def symbols(path: Path, *options: str) -> set[str]:
        printed = subprocess.run(["nm", "-D", *options, path], capture_output=True, text=True, check=True).stdout
        return {line.split()[-1] for line in printed.splitlines()}

    shown = symbols(_extension.FOLDER / _extension.LIBRARY, "--defined-only")
    asked = symbols(_extension.find_shim(torch.__version__), "--undefined-only")
    assert shown == {name for name in asked if name.startswith("bt_")}


def test_an_extension_without_an_op_of_the_package_is_named() -> None:
    code = """
import torch
own = torch.library.register_fake
torch.library.register_fake = lambda name: own(name.replace("ternary_check", "ternary_of_tomorrow"))
import bittorch
"""
    last = helpers.run_python(code).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bittorch's extension is older than its Python files: operator")
    assert "bittorch::ternary_of_tomorrow" in last
    assert "pip install --no-build-isolation" in last
