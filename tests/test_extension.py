import sys

import pytest
import torch

from bittorch import _build_info, _extension
from tests import helpers


@pytest.mark.parametrize(
    ("version", "minor"),
    [("2.13.0+cpu", ("2", "13")), ("2.9.1", ("2", "9")), ("2.14.0a0+git123", ("2", "14")), ("2.8.0+cu128", ("2", "8"))],
)
def test_minor_version(version: str, minor: tuple[str, str]) -> None:
    assert _extension.minor_version(version) == minor


@pytest.mark.parametrize(("built", "running"), [("2.13.0+cpu", "2.13.1+cu130"), ("2.9.0", "2.9.0+cpu")])
def test_same_minor_is_accepted(built: str, running: str) -> None:
    _extension.check_torch(built, running)


@pytest.mark.parametrize(("built", "running"), [("2.13.0", "2.12.1"), ("2.1.0", "2.13.0"), ("3.13.0", "2.13.0")])
def test_other_minor_is_one_clear_line_with_both(built: str, running: str) -> None:
    with pytest.raises(ImportError) as info:
        _extension.check_torch(built, running)
    message = str(info.value)
    assert f"built against torch {built} but torch {running} is running" in message
    assert "pip install --no-build-isolation" in message
    assert "\n" not in message


def test_the_version_is_checked_before_the_extension_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build_info, "TORCH_VERSION", "1.0.0")
    monkeypatch.setitem(sys.modules, "bittorch._C", None)  # importing it would fail in another way
    with pytest.raises(ImportError, match=r"built against torch 1\.0\.0"):
        _extension.load()


def test_missing_build_says_how_to_build() -> None:
    code = "import sys; sys.modules['bittorch._build_info'] = None; import bittorch"
    result = helpers.run_python(code)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bittorch's extension is not built; run: pip install --no-build-isolation")
    assert "During handling" not in result.stderr


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


def test_build_info_names_the_torch_that_runs() -> None:
    assert _extension.minor_version(_build_info.TORCH_VERSION) == _extension.minor_version(torch.__version__)
