"""The runner of `make test`: what it says and returns where tools are missing and where stages fail. FIELD N1"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import run_stages, without_tools
from tests.run_stages import STAGES, Stage

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("simde", "neon", "nvcc", "ptx")  # stages whose tool a bare machine lacks


def _stage(name: str, code: str, **more: object) -> Stage:
    return replace(Stage(name, f"the stage {name}", (sys.executable, "-c", code)), **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_stages, "LOGS", tmp_path / "logs")
    monkeypatch.delenv("BITTORCH_CI", raising=False)
    monkeypatch.delenv("V", raising=False)


def _run_hidden(tmp_path: Path, *stages: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**without_tools.environment(tmp_path / "hidden"), **variables}
    command = [sys.executable, ROOT / "tests" / "run_stages.py", *stages]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_what_lacks_a_tool_is_one_line_with_tool_package_and_loss(tmp_path: Path) -> None:  # FIELD N1
    result = _run_hidden(tmp_path, *TOOLS)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for number, (stage, tool, package, loss) in enumerate(
        [
            ("simde", "simde/x86/avx512.h", "libsimde-dev", "AVX-512 kernels"),
            ("neon", "qemu-aarch64", "qemu-user", "NEON kernels"),
            ("nvcc", "nvcc", "nvidia-cuda-toolkit", "nvcc compiles the CUDA kernels"),
            ("ptx", "nvcc", "nvidia-cuda-toolkit", "what the compiled CUDA kernels compute"),
        ],
        1,
    ):
        (line,) = (line for line in lines if line.startswith(f"[{number}/4] {STAGES[stage].title}: not run"))
        assert f"no {tool} (package {package}" in line
        assert loss in line.partition("not tested: ")[2]
        assert sum(line.startswith(f"not run  {STAGES[stage].title}: no ") for line in lines) == 1
    assert lines[-1].startswith("0 of 4 stages passed, 4 not run, 0 failed")


@pytest.mark.parametrize("stage", TOOLS)
def test_in_ci_a_missing_tool_is_a_failure(tmp_path: Path, stage: str) -> None:  # FIELD N1
    result = _run_hidden(tmp_path, stage, BITTORCH_CI="1")
    assert result.returncode == 1
    assert f"[1/1] {STAGES[stage].title}: FAILED, no " in result.stdout


def test_hidden_tools_are_not_found(tmp_path: Path) -> None:
    """A build that needs SIMDe fails without it, whatever the machine has: so CI sees what a bare machine would."""
    environment = without_tools.environment(tmp_path / "hidden")
    for header in without_tools.HEADERS:
        command = ["cc", "-x", "c", "-fsyntax-only", "-"]
        done = subprocess.run(command, env=environment, input=f"#include <{header}>\n", capture_output=True, text=True)
        assert done.returncode != 0
        assert f"{header} is hidden" in done.stderr
    for program in ("nvcc", "qemu-aarch64", "aarch64-linux-gnu-gcc", "clang"):
        done = subprocess.run(["sh", "-c", f"command -v {program}"], env=environment, capture_output=True)
        assert done.returncode != 0
    assert subprocess.run(["sh", "-c", "command -v make && cc --version"], env=environment).returncode == 0
    included = {line.split("<")[1].split(">")[0] for line in _includes_of_simde()}
    assert included
    assert included <= set(without_tools.HEADERS)


def _includes_of_simde() -> list[str]:
    sources = [path for suffix in ("*.h", "*.c") for path in (ROOT / "csrc").rglob(suffix)]
    return [line for path in sources for line in path.read_text().splitlines() if line.startswith("#include <simde")]


def test_a_tool_of_cuda_is_looked_for_in_cuda_home_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = tmp_path / "path" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(0o755)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert run_stages.OPTIONAL.nvcc("") == str(nvcc)
    assert run_stages.OPTIONAL.nvcc(str(tmp_path)) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(0o755)
    assert run_stages.OPTIONAL.nvcc(str(tmp_path)) == str(tmp_path / "bin" / "nvcc")


def test_stages_are_numbered_timed_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stages.run([_stage("a", "print('from a')"), _stage("b", "pass")]) == 0
    out = capsys.readouterr().out
    assert "[1/2] the stage a ok, 0 s" in out
    assert "[2/2] the stage b ok, 0 s" in out
    assert "from a" not in out
    assert "ran      the stage a: 0 s" in out
    assert (run_stages.LOGS / "a.log").read_text().endswith("from a\n")


def test_a_failed_stage_shows_its_commands_and_output_and_the_others_run(capsys: pytest.CaptureFixture[str]) -> None:
    fails = _stage("fails", "print('the reason'); raise SystemExit(3)")
    assert run_stages.run([fails, _stage("next", "pass")]) == 1
    out = capsys.readouterr().out
    assert "[1/2] the stage fails FAILED, exit code 3, 0 s" in out
    assert f"{sys.executable} -c print('the reason')" in out
    assert "\nthe reason\n" in out
    assert "fails.log" in out
    assert "[2/2] the stage next ok" in out
    assert "1 of 2 stages passed, 0 not run, 1 failed" in out


def test_a_failed_stage_that_others_need_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stages.run([_stage("fails", "raise SystemExit(1)", needed=True), _stage("next", "pass")]) == 1
    assert "the stage next" not in capsys.readouterr().out


def test_a_program_that_is_not_there_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stages.run([Stage("none", "nothing", ("no-such-program",))]) == 1
    assert "No such file or directory: 'no-such-program'" in capsys.readouterr().out


@pytest.mark.slow
def test_a_long_stage_shows_its_last_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_stages, "HEARTBEAT", 0)
    lines = ["cc native/module.o", "gcc  -std=c11 -O3 -c module.c", "x" * 200]
    for shown, printed in ((lines[0], lines[:2]), ("x" * 100, lines)):
        code = f"import time; print({chr(10).join(printed)!r}, flush=True); time.sleep(1.5)"
        assert run_stages.run([_stage("a", code)]) == 0
        assert f" s  {shown}\n" in capsys.readouterr().out


def test_everything_is_shown_at_once_if_asked(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("V", "1")
    assert run_stages.run([_stage("a", "print('from a')")]) == 0
    assert b"\nfrom a\n" in capfdbinary.readouterr().out


def test_skips_of_pytest_are_counted_by_reason() -> None:
    text = """SKIPPED [3] tests/a.py:14: no device
SKIPPED [1] tests/b.py: no tool: really
SKIPPED [2] tests/c.py:1: no device
"""
    assert run_stages.pytest_skips(text) == ["5 Python tests: no device", "1 Python test: no tool: really"]


def test_unknown_stages_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stages.main(["nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().out


def test_make_runs_these_plans() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target, plan in (("demo", "demo"), ("test", "test"), ("test-fast", "test-fast"), ("test-kernels", "kernels")):
        assert f"\n{target}: " in makefile
        assert f"\t$(STAGES) {plan}\n" in makefile
    assert set(run_stages.PLANS["test"]) == set(STAGES) - {"fast", "mnist"}


def test_workers_of_one_run_share_their_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    code = "import os; print(os.environ['PYTHONHASHSEED'], hash('name'))"
    printed = []
    for name in ("a", "b"):
        assert run_stages.execute(_stage(name, code, live=True))[0] == 0
        printed.append((run_stages.LOGS / f"{name}.log").read_text().splitlines())
    assert printed[0][-1] == printed[1][-1]
    assert printed[0][0].startswith(f"PYTHONHASHSEED={printed[0][-1].split()[0]} ")


def test_environment_of_make_keeps_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -j2 --jobserver-auth=3,4 -- TORCH=torch==2.13.0")
    stage = _stage("a", "import os; print('flags', os.environ['MAKEFLAGS'])")
    assert run_stages.execute(stage)[0] == 0
    assert (run_stages.LOGS / "a.log").read_text().splitlines()[-1] == "flags  -- TORCH=torch==2.13.0"
    assert os.environ["MAKEFLAGS"].startswith(" -j2")
