"""Runs what `make demo` and `make test` consist of, one stage after the other, and says what ran and what did not.

    python3 tests/run_stages.py test            the stages of a plan, see PLANS
    python3 tests/run_stages.py simde neon      stages by name

A stage whose tool is missing is not run: one line names the tool, its Debian package, and what is then not tested.
With BITTORCH_CI=1 such a stage fails. Command lines and their output go to build/logs/STAGE.log, which is shown where a
stage fails; V=1 shows everything at once. The file needs the standard library alone: it also makes the environment.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "logs"
PYTHON = Path(os.environ.get("VENV") or ".venv") / "bin" / "python"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
HEARTBEAT = 20  # seconds between two signs of life
SHOWN = 60  # lines of a log where a stage fails, outside CI
COMMAND = re.compile(r"\S*(cc|\+\+|nvcc)\s+-|if |make")


def _load_tools() -> ModuleType:
    """bittorch/_optional.py without the package around it, which needs torch."""
    spec = importlib.util.spec_from_file_location("bittorch_optional", ROOT / "bittorch" / "_optional.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


OPTIONAL = _load_tools()


@dataclass(frozen=True)
class Stage:
    """One line of the report. A stage that is needed ends the run where it fails."""

    name: str
    title: str
    command: tuple[str, ...]
    tools: tuple[str, ...] = ()
    untested: str = ""  # what nobody tested where a tool is missing
    needed: bool = False
    live: bool = False  # its output is the progress


def _make(*targets: str, folder: str = "", jobs: int = CPUS) -> tuple[str, ...]:
    where = ("-C", folder) if folder else ()
    return ("make", "--no-print-directory", f"-j{jobs}", *where, *targets, "V=1")


def _pytest(*arguments: str) -> tuple[str, ...]:
    workers = ("-n", str(min(CPUS, 8)), "--dist", "worksteal") if CPUS > 1 else ()
    return (str(PYTHON), "-m", "pytest", "-rs", *workers, *arguments)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("environment", "Python packages into .venv", _make("environment"), needed=True),
        Stage("extension", "the C extension", _make("extension", jobs=1), needed=True),
        Stage("native", "C kernels of this machine", _make("check", folder="tests/kernels")),
        Stage(
            "sanitizers",
            "C kernels under ASan and UBSan",
            _make("asan", folder="tests/kernels"),
            ("sanitizer runtimes",),
            "memory errors and undefined behaviour of the C kernels",
        ),
        Stage(
            "simde",
            "AVX-512 kernels through SIMDe",
            _make("simde", folder="tests/kernels"),
            ("simde/x86/avx512.h",),
            "the AVX-512 kernels, as far as this CPU has no AVX-512",
        ),
        Stage(
            "neon",
            "NEON kernels under qemu",
            _make("neon", folder="tests/kernels"),
            ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
            "the NEON kernels",
        ),
        Stage(
            "emulated",
            "CUDA kernels, emulated on the CPU",
            _make("check", folder="tests/cuda_host"),
            ("sanitizer runtimes",),
            "what the CUDA kernels compute",
        ),
        Stage(
            "nvcc",
            "CUDA kernels compiled for every device",
            _make("nvcc", folder="tests/cuda_host"),
            ("nvcc",),
            "that nvcc compiles the CUDA kernels without a warning",
        ),
        Stage(
            "ptx",
            "PTX of the CUDA kernels, interpreted",
            _make("check", folder="tests/cuda_ptx"),
            ("nvcc",),
            "what the compiled CUDA kernels compute",
        ),
        Stage("python", "Python tests", _pytest(), live=True),
        Stage("fast", "Python tests that are not slow", _pytest("-m", "not slow"), live=True),
        Stage(
            "mnist",
            "a ternary MLP and its FP32 twin on MNIST digits",
            (str(PYTHON), "examples/mnist_mlp_ternary.py", "--compare", "--out", "demo_output"),
            live=True,
        ),
    )
}
# One seed for all workers of pytest-xdist, which must collect the same names, also where a name comes from a set; and
# threads of torch that wait without spinning, since the workers share the cores.
ENVIRONMENT = {"PYTHONHASHSEED": str(random.randrange(1, 1 << 16)), "OMP_WAIT_POLICY": "passive"}
READY = ("environment", "extension")
KERNELS = ("native", "sanitizers", "simde", "neon")
CUDA = ("emulated", "nvcc", "ptx")
PLANS = {
    "build": READY,
    "demo": (*READY, "mnist"),
    "kernels": KERNELS,
    "cuda": CUDA,
    "test": (*READY, *KERNELS, *CUDA, "python"),
    "test-fast": (*READY, "fast"),
}


@dataclass
class Report:
    """What became of the stages, for the closing lines."""

    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def is_ci() -> bool:
    return os.environ.get("BITTORCH_CI") == "1"


def _say(*text: str, end: str = "\n") -> None:
    print(*text, end=end, flush=True)


def missing(stage: Stage) -> str:
    """What the stage lacks, with the packages that have it; empty where it can run."""
    known = {tool.name: tool for tool in (*OPTIONAL.USER_TOOLS, *OPTIONAL.TEST_TOOLS)}
    wanted = tuple(known[name] for name in stage.tools)
    lacking = OPTIONAL.missing_tools(wanted, os.environ.get("CUDA_HOME", ""), os.environ.get("CC", ""))
    return ", ".join(f"no {tool.name} (package {tool.package})" for tool in lacking)


def _last_line(text: bytes) -> str:
    """The beginning of the newest line that is no command of a compiler."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
    return next((line[:100] for line in reversed(lines) if line and not COMMAND.match(line)), "")


def _follow(process: subprocess.Popen[bytes], log: Any, live: bool, start: float) -> None:
    """Copies the output to the log, and to the terminal or, now and then, its last line."""
    assert process.stdout
    recent, told = b"", start
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=1):
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return
                log.write(chunk)
                log.flush()
                recent = (recent + chunk)[-4000:]
                if live:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.flush()
            if not live and time.monotonic() - told >= HEARTBEAT:
                told = time.monotonic()
                _say(f"        {told - start:4.0f} s  {_last_line(recent)}")


def execute(stage: Stage) -> tuple[int, float]:
    """Runs the stage's command; returns its exit code and the seconds that it took."""
    LOGS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # make's own variables, such as TORCH, stay; its job server ends where this program begins.
    flags = re.sub(r"\s*(-j\d*|--jobserver-\S+)", "", os.environ.get("MAKEFLAGS", ""))
    environment = {**ENVIRONMENT, **os.environ, "MAKEFLAGS": flags, "PYTHONUNBUFFERED": "1"}
    with (LOGS / f"{stage.name}.log").open("wb") as log:
        seed = f"PYTHONHASHSEED={environment['PYTHONHASHSEED']} " if stage.live else ""
        log.write(f"{seed}{' '.join(stage.command)}\n".encode())
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 127, 0.0
        try:
            _follow(process, log, stage.live or bool(os.environ.get("V")), start)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return process.wait(), time.monotonic() - start


def _show(stage: Stage) -> None:
    path = LOGS / f"{stage.name}.log"
    if not stage.live and not os.environ.get("V"):
        lines = path.read_text(errors="replace").splitlines()
        _say("\n".join(lines if is_ci() else lines[-SHOWN:]))
    _say(f"        all of its output: {os.path.relpath(path)}")


def pytest_skips(text: str) -> list[str]:
    """The reasons of pytest's short summary with the number of tests each, most tests first."""
    found: Counter[str] = Counter()
    for count, reason in re.findall(r"^SKIPPED \[(\d+)\] [^:]+(?::\d+)?: (.+)$", text, re.M):
        found[reason.strip()] += int(count)
    return [f"{count} Python test{'s' * (count > 1)}: {reason}" for reason, count in found.most_common()]


def run_stage(stage: Stage, place: str, report: Report) -> bool:
    """Runs one stage and adds its line to the report; false where the run has to end."""
    if lacking := missing(stage):
        line = f"{lacking}; not tested: {stage.untested}"
        _say(f"{place} {stage.title}: {'FAILED' if is_ci() else 'not run'}, {line}")
        (report.failed if is_ci() else report.skipped).append(f"{stage.title}: {line}")
        return True
    _say(f"{place} {stage.title} ...")
    code, seconds = execute(stage)
    _say(f"{place} {stage.title} {'ok' if code == 0 else f'FAILED, exit code {code}'}, {seconds:.0f} s")
    if code:
        _show(stage)
        report.failed.append(f"{stage.title}: exit code {code}")
        return not stage.needed
    report.ran.append(f"{stage.title}: {seconds:.0f} s")
    if "pytest" in stage.command:
        report.skipped += pytest_skips((LOGS / f"{stage.name}.log").read_text(errors="replace"))
    return True


def run(stages: Sequence[Stage]) -> int:
    """Runs the stages in order; returns 1 where one failed."""
    if sys.version_info < (3, 10):  # noqa: UP036, whatever make finds runs this file
        _say(f"bittorch needs Python 3.10 or later, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")
        return 1
    report, start = Report(), time.monotonic()
    for number, stage in enumerate(stages, 1):
        if not run_stage(stage, f"[{number}/{len(stages)}]", report):
            break
    _say()
    for title, lines in (("ran", report.ran), ("not run", report.skipped), ("FAILED", report.failed)):
        for line in lines:
            _say(f"{title:8} {line}")
    passed, failed = len(report.ran), len(report.failed)
    counts = f"{passed} of {len(stages)} stages passed, {len(stages) - passed - failed} not run, {failed} failed"
    _say(f"{counts}, {time.monotonic() - start:.0f} s")
    return 1 if report.failed else 0


def main(arguments: Sequence[str]) -> int:
    names = [name for argument in arguments for name in PLANS.get(argument, (argument,))]
    if not names or (unknown := [name for name in names if name not in STAGES]):
        _say(f"stages are {', '.join(STAGES)}; plans are {', '.join(PLANS)}; got {unknown if names else 'none'}")
        return 2
    try:
        return run([STAGES[name] for name in names])
    except KeyboardInterrupt:
        _say("\ninterrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
