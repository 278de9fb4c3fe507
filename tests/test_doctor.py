import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bittorch import _C, _extension, _optional, doctor, ops
from bittorch._version import __version__


def test_doctor_reports_and_succeeds() -> None:
    result = subprocess.run([sys.executable, "-m", "bittorch", "doctor"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout
    assert f"{__version__}, {_extension.describe_shims()}" in text
    assert f"{torch.__version__} running" in text
    assert all(feature in text for feature in _C.cpu_features())
    for row in _C.kernels():
        assert row["op"] in text
    assert text.rstrip().endswith("all well")


@pytest.mark.slow
def test_doctor_without_a_command_says_what_there_is() -> None:
    result = subprocess.run([sys.executable, "-m", "bittorch"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "doctor" in result.stderr


def test_doctor_tests_every_usable_product(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run() == 0
    text = capsys.readouterr().out
    for row in _C.kernels():
        if row["op"].startswith(("ternary_linear", "ternary_conv2d")) and row["usable"] and row["device"] == "cpu":
            line = next(line for line in text.splitlines() if f"{row['op']} {row['variant']} " in line)
            assert line.endswith("ok")


@pytest.mark.parametrize(
    "op", ["ternary_linear_packed", "ternary_linear_w2a8", "ternary_conv2d_packed", "ternary_unpack", "act_quantize"]
)
def test_doctor_finds_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], op: str
) -> None:
    right = getattr(ops, op)

    def wrong(*args: object, **kwargs: object) -> object:
        result = right(*args, **kwargs)
        return (result[0] + 1, result[1]) if isinstance(result, tuple) else result + 1

    monkeypatch.setattr(ops, op, wrong)
    assert doctor.run() == 1
    assert "differs from the reference" in capsys.readouterr().out


def test_doctor_reports_an_exception_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(ops, "ternary_linear_packed", broken)
    assert doctor.run() == 1
    text = capsys.readouterr().out
    assert "RuntimeError: no luck" in text
    assert any("ternary_linear_w2a8" in line and line.endswith("ok") for line in text.splitlines())


def test_doctor_says_what_is_missing_and_what_for(monkeypatch: pytest.MonkeyPatch) -> None:  # FIELD N1
    here = _optional.EXTRAS[0].__class__("here", "nothing", ("torch",))
    lacking = _optional.EXTRAS[0].__class__("plots", "drawing", ("torch", "no_such_module"))
    tool = _optional.Tool("no-such-program", "the-package", "a purpose", _optional._program("no-such-program"))
    found = _optional.Tool("python", "python3", "running", _optional._program(sys.executable))
    monkeypatch.setattr(_optional, "EXTRAS", (here, lacking))
    monkeypatch.setattr(_optional, "USER_TOOLS", (tool, found))
    monkeypatch.setattr(_optional, "TEST_TOOLS", ())
    lines = doctor.description()
    assert lines[lines.index("optional, not installed") + 1 :] == [
        f"  {'bittorch[plots]':22} for drawing; without no_such_module",
        f"  {'no-such-program':22} for a purpose; Debian package the-package",
    ]
    monkeypatch.setattr(_optional, "EXTRAS", (here,))
    monkeypatch.setattr(_optional, "USER_TOOLS", (found,))
    assert doctor.description()[-1] == "optional   all tools and extras are installed"


def test_the_table_of_extras_is_that_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    listed = dict(re.findall(r"^(\w+) = \[(.*)\]", section, re.M))
    del listed["dev"]
    assert {extra.name for extra in _optional.EXTRAS} == set(listed)
    for extra in _optional.EXTRAS:
        names = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', listed[extra.name])} - {"bittorch"}
        assert set(extra.modules) == {name.removesuffix("_python") for name in names}


def _no_driver() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system.\nMore of it")


@pytest.mark.parametrize(
    ("arches", "cuda", "line"),
    [
        ("", None, "no kernels in this build; no device"),
        ("8.7", None, f"kernels for 8.7; no device: torch {torch.__version__} is built without CUDA"),
        ("8.7", "13.0", "kernels for 8.7; no device: torch says Found no NVIDIA driver on your system."),
    ],
)
def test_a_build_with_cuda_kernels_says_why_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch, arches: str, cuda: str | None, line: str
) -> None:
    monkeypatch.setattr(doctor._build_info, "CUDA_ARCHES", arches)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", _no_driver)
    assert doctor._describe_cuda() == line
