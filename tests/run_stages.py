"""Runs what `make demo` and `make test` consist of, and says what ran and what did not.

    python3 tests/run_stages.py test            the stages of a plan, see PLANS
    python3 tests/run_stages.py simde neon      stages by name

Stages run in order; neighbours that nobody watches or waits for run side by side, one more than there are CPUs: each
keeps about one busy, and the last one would leave the others idle. Each writes a folder of its own. A stage whose tool
is missing is not run: one line names the tool, its Debian package, and what is then not tested. With BITTORCH_CI=1 such
a stage fails. Command lines and their output go to build/logs/STAGE.log, which is shown where a stage fails; V=1 shows
everything at once, each line behind the name of its stage. The file needs the standard library alone: it also makes the
environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "logs"
PYTHON = Path(os.environ.get("VENV") or ".venv") / "bin" / "python"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
JOBS = "{jobs}"  # in a command: its share of the CPUs
HEARTBEAT = 20  # seconds between two signs of life
GRACE = 10  # seconds in which processes end when they are asked to
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

    @property
    def alone(self) -> bool:
        return self.needed or self.live


def _make(*targets: str, folder: str = "", jobs: str = JOBS) -> tuple[str, ...]:
    where = ("-C", folder) if folder else ()
    return ("make", "--no-print-directory", f"-j{jobs}", *where, *targets, "V=1")


def _pytest(*arguments: str) -> tuple[str, ...]:
    workers = ("-n", str(min(CPUS, 8)), "--dist", "worksteal") if CPUS > 1 else ()
    return (str(PYTHON), "-m", "pytest", "-rs", *workers, *arguments)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("environment", "Python packages into .venv", _make("environment"), needed=True),
        Stage("extension", "the C extension", _make("extension", jobs="1"), needed=True),
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
            _make("check", f"JOBS={JOBS}", folder="tests/cuda_ptx"),
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
# The longest first, so that no CPU waits at the end.
KERNELS = ("neon", "sanitizers", "simde", "native")
CUDA = ("emulated", "nvcc", "ptx")
PLANS = {
    "build": READY,
    "demo": (*READY, "mnist"),
    "kernels": KERNELS,
    "cuda": CUDA,
    "test": (*READY, *CUDA, *KERNELS, "python"),
    "test-fast": (*READY, "fast"),
}


@dataclass
class Report:
    """What became of the stages, for the closing lines, which are in the order of the plan."""

    lines: list[tuple[int, str, str]] = field(default_factory=list)  # a stage's number, ran or other, text

    def add(self, number: int, kind: str, text: str) -> None:
        self.lines.append((number, kind, text))

    def of(self, kind: str) -> list[str]:
        return [text for _, found, text in sorted(self.lines, key=lambda line: line[0]) if found == kind]


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


class Job:
    """A stage that runs. Its processes are a group of their own, so that one signal ends them all."""

    def __init__(self, stage: Stage, number: int, place: str, jobs: int) -> None:
        self.stage, self.number, self.place = stage, number, place
        self.start = self.told = time.monotonic()
        self.recent, self.line = b"", b""
        command = [part.replace(JOBS, str(jobs)) for part in stage.command]
        # make's own variables, such as TORCH, stay; its job server ends where this program begins.
        flags = re.sub(r"\s*(-j\d*|--jobserver-\S+)", "", os.environ.get("MAKEFLAGS", ""))
        environment = {**ENVIRONMENT, **os.environ, "MAKEFLAGS": flags, "PYTHONUNBUFFERED": "1"}
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = (LOGS / f"{stage.name}.log").open("wb", buffering=0)
        seed = f"PYTHONHASHSEED={environment['PYTHONHASHSEED']} " if stage.live else ""
        self.log.write(f"{seed}{' '.join(command)}\n".encode())
        self.process = subprocess.Popen(
            ("sh", "-c", 'exec "$0" "$@"', *command),  # says so where the program is missing
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout
        self.output = self.process.stdout

    def copy(self) -> bool:
        """Takes what was printed to the log and, where it is wanted at once, to the terminal; False at the end."""
        chunk = os.read(self.output.fileno(), 1 << 16)
        self.log.write(chunk)
        self.recent = (self.recent + chunk)[-4000:]
        if self.stage.live:
            sys.stdout.buffer.write(chunk)
        elif os.environ.get("V"):
            *lines, self.line = (self.line + chunk).split(b"\n")
            lines += [self.line] if self.line and not chunk else []
            sys.stdout.buffer.writelines(b"%s | %s\n" % (self.stage.name.encode(), line) for line in lines)
        sys.stdout.flush()
        return bool(chunk)

    def tell(self) -> None:
        """Now and then a sign of life: the last line."""
        now = time.monotonic()
        if not self.stage.live and not os.environ.get("V") and now - self.told >= HEARTBEAT:
            self.told = now
            _say(f"        {now - self.start:4.0f} s  {self.stage.name}: {_last_line(self.recent)}")

    def wait(self) -> int:
        self.log.close()
        self.output.close()
        return self.process.wait()

    def end(self) -> None:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, kind)
                self.process.wait(timeout=GRACE)
        self.wait()


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


def _close(job: Job, report: Report) -> bool:
    """Says how a stage ended and adds it to the report; False where the run has to end."""
    stage, code, seconds = job.stage, job.wait(), time.monotonic() - job.start
    _say(f"{job.place} {stage.title} {'ok' if code == 0 else f'FAILED, exit code {code}'}, {seconds:.0f} s")
    if code:
        _show(stage)
        report.add(job.number, "FAILED", f"{stage.title}: exit code {code}")
        return not stage.needed
    report.add(job.number, "ran", f"{stage.title}: {seconds:.0f} s")
    if "pytest" in stage.command:
        for line in pytest_skips((LOGS / f"{stage.name}.log").read_text(errors="replace")):
            report.add(job.number, "not run", line)
    return True


def run_together(stages: Sequence[tuple[int, str, Stage]], report: Report) -> bool:
    """Runs stages side by side, one more than there are CPUs; False where the run has to end."""
    waiting = []
    for number, place, stage in stages:
        if lacking := missing(stage):
            line = f"{lacking}; not tested: {stage.untested}"
            _say(f"{place} {stage.title}: {'FAILED' if is_ci() else 'not run'}, {line}")
            report.add(number, "FAILED" if is_ci() else "not run", f"{stage.title}: {line}")
        else:
            waiting.append((number, place, stage))
    room, going_on = min(CPUS + 1, len(waiting)), True
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                while waiting and len(selector.get_map()) < room:
                    number, place, stage = waiting.pop(0)
                    _say(f"{place} {stage.title} ...")
                    job = Job(stage, number, place, max(CPUS // room, 1))
                    selector.register(job.output, selectors.EVENT_READ, job)
                for key, _ in selector.select(timeout=1):
                    if not key.data.copy():
                        selector.unregister(key.fileobj)
                        going_on = _close(key.data, report) and going_on
                for key in selector.get_map().values():
                    key.data.tell()
        except BaseException:
            for key in selector.get_map().values():
                key.data.end()
            raise
    return going_on


def run(stages: Sequence[Stage]) -> int:
    """Runs the stages in order, those side by side that nobody watches or waits for; returns 1 where one failed."""
    if sys.version_info < (3, 10):  # noqa: UP036, whatever make finds runs this file
        _say(f"bittorch needs Python 3.10 or later, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")
        return 1
    report, start = Report(), time.monotonic()
    numbered = [(number, f"[{number}/{len(stages)}]", stage) for number, stage in enumerate(stages, 1)]
    for _, together in itertools.groupby(numbered, lambda entry: entry[0] if entry[2].alone else 0):
        if not run_together(list(together), report):
            break
    _say()
    for kind in ("ran", "not run", "FAILED"):
        for line in report.of(kind):
            _say(f"{kind:8} {line}")
    passed, failed = len(report.of("ran")), len(report.of("FAILED"))
    counts = f"{passed} of {len(stages)} stages passed, {len(stages) - passed - failed} not run, {failed} failed"
    _say(f"{counts}, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def _end_as_by_ctrl_c() -> None:
    """A signal that ends this program also ends the stages, which do not get it from the terminal."""
    for kind in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is signal.SIG_DFL:
            signal.signal(kind, signal.default_int_handler)


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
    _end_as_by_ctrl_c()
    sys.exit(main(sys.argv[1:]))
