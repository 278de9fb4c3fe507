"""The runner of `make test`: what it says and returns where tools are missing and where stages fail. FIELD N1"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import run_stages, without_tools
from tests.helpers import take_ctrl_c
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
    out = capsys.readouterr().out
    assert "[1/1] nothing FAILED, exit code 127" in out
    assert "no-such-program: not found" in out


def _meets(own: Path, other: Path) -> str:
    """Ends well if what makes the other file runs at the same time."""
    return f"""
import pathlib, sys, time
pathlib.Path({str(own)!r}).touch()
end = time.monotonic() + 60
while not pathlib.Path({str(other)!r}).exists():
    if time.monotonic() > end: sys.exit("alone")
    time.sleep(0.01)
"""


def test_stages_run_side_by_side_and_are_summed_up_in_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_stages, "CPUS", 1)
    a, b, c = (tmp_path / name for name in "abc")
    first = _stage("first", _meets(a, b) + _meets(a, c))  # runs until the third does, so it ends after the second
    stages = [first, _stage("second", _meets(b, a)), _stage("third", _meets(c, a))]
    assert run_stages.run(stages) == 0
    out = capsys.readouterr().out
    assert out.index("[1/3] the stage first ...") < out.index("[2/3] the stage second ...")
    assert out.index("[2/3] the stage second ok") < out.index("[3/3] the stage third ...")
    assert out.index("[3/3] the stage third ...") < out.index("[1/3] the stage first ok")
    ran = [line.split()[3].rstrip(":") for line in out.splitlines() if line.startswith("ran ")]
    assert ran == ["first", "second", "third"]


@pytest.mark.parametrize("kind", ["live", "needed"])
def test_a_stage_that_is_watched_or_needed_runs_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(run_stages, "CPUS", 4)
    stages = [_stage("a", "pass"), _stage("b", "pass", **{kind: True}), _stage("c", "pass")]
    assert run_stages.run(stages) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split()[-1] for line in said[::2]] == ["..."] * 3
    assert [line[:5] for line in said] == ["[1/3]", "[1/3]", "[2/3]", "[2/3]", "[3/3]", "[3/3]"]


def test_stages_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_stages, "CPUS", 6)
    for names, jobs in (("a", 6), ("abc", 2), ("abcdefgh", 1)):
        assert run_stages.run([_stage(name, f"print('jobs', {run_stages.JOBS})") for name in names]) == 0
        for name in names:
            assert (run_stages.LOGS / f"{name}.log").read_text().endswith(f"\njobs {jobs}\n")
    assert all(run_stages.JOBS in " ".join(STAGES[name].command) for name in (*run_stages.KERNELS, *run_stages.CUDA))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_run_ends_all_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    """The stages and what they started, which the terminal does not reach."""
    code = f"""
import pathlib, sys
from tests import run_stages
run_stages.CPUS, run_stages.LOGS = 2, pathlib.Path({str(tmp_path)!r})
for name in "ab":
    path = run_stages.LOGS / name
    sleeps = f"sleep 300 & echo $! $$ > {{path}}.new; mv {{path}}.new {{path}}; wait"
    run_stages.STAGES[name] = run_stages.Stage(name, name, ("sh", "-c", sleeps))
run_stages._end_as_by_ctrl_c()
sys.exit(run_stages.main(["a", "b"]))
"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=take_ctrl_c)
    limit = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "ab"):
        assert time.monotonic() < limit
        time.sleep(0.01)
    processes = [int(word) for name in "ab" for word in (tmp_path / name).read_text().split()]
    runner.send_signal(number)
    out, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert out.endswith(b"interrupted\n")
    while (alive := [p for p in processes if _is_alive(p)]) and time.monotonic() < limit:
        time.sleep(0.01)
    assert len(processes) == 4
    assert not alive


def _is_alive(process: int) -> bool:
    """Whether it runs; one that ended may wait for init to take notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_long_stage_shows_its_name_and_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_stages, "HEARTBEAT", 0)
    lines = ["cc native/module.o", "gcc  -std=c11 -O3 -c module.c", "x" * 200]
    for shown, printed in ((lines[0], lines[:2]), ("x" * 100, lines)):
        code = f"import time; print({chr(10).join(printed)!r}, flush=True); time.sleep(1.5)"
        assert run_stages.run([_stage("a", code)]) == 0
        assert f" s  a: {shown}\n" in capsys.readouterr().out


def test_everything_is_shown_at_once_if_asked_in_whole_lines(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("V", "1")
    monkeypatch.setattr(run_stages, "CPUS", 2)
    begins, goes_on = "print('begun', end=' ', flush=True)", "print('and ended'); print('no end', end='')"
    a, b = tmp_path / "a", tmp_path / "b"
    for own, other, name in ((a, b, "a"), (b, a, "b")):
        stage = _stage(name, f"{begins}{_meets(own, other)}{goes_on}")
        monkeypatch.setitem(STAGES, name, stage)
    assert run_stages.main(["a", "b"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    for name in (b"a", b"b"):
        assert [line[4:] for line in lines if line.startswith(name + b" | ")] == [b"begun and ended", b"no end"]


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


def test_make_lists_every_target_that_has_a_text() -> None:
    documented = re.findall(r"^([^\s:#]+):[^\n]*## ", (ROOT / "Makefile").read_text(), re.M)
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"wheel", "wheel-aarch64", "test-aarch64"} <= set(documented)
    assert [line.split()[0] for line in printed.splitlines()] == documented


def test_workers_of_one_run_share_their_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    code = "import os; print(os.environ['PYTHONHASHSEED'], hash('name'))"
    printed = []
    for name in ("a", "b"):
        assert run_stages.run([_stage(name, code, live=True)]) == 0
        printed.append((run_stages.LOGS / f"{name}.log").read_text().splitlines())
    assert printed[0][-1] == printed[1][-1]
    assert printed[0][0].startswith(f"PYTHONHASHSEED={printed[0][-1].split()[0]} ")


def test_environment_of_make_keeps_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -j2 --jobserver-auth=3,4 -- TORCH=torch==2.13.0")
    stage = _stage("a", "import os; print('flags', os.environ['MAKEFLAGS'])")
    assert run_stages.run([stage]) == 0
    assert (run_stages.LOGS / "a.log").read_text().splitlines()[-1] == "flags  -- TORCH=torch==2.13.0"
    assert os.environ["MAKEFLAGS"].startswith(" -j2")
