"""The command as a user runs it, in this process or in one of its own, with a tiny model."""

import contextlib
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from bittorch.cli import main
from tests.cli import tiny_model


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line, parse_constant=_refuse) for line in self.out.splitlines()]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model to chat with."""
    pytest.importorskip("tokenizers", reason="language models need bittorch[lm]")
    pytest.importorskip("jinja2", reason="chat templates need bittorch[lm]")
    return tiny_model.make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def bittorch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in this process."""

    def run(*arguments: object, stdin: str | bytes = b"") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def ctrl_c_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes Ctrl-C come after so many pieces of the next answer."""
    from bittorch.models import Generation

    take = Generation.__next__

    def arm(pieces: int) -> None:
        left = [pieces]

        def stop(generation: Generation) -> object:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return take(generation)

        monkeypatch.setattr(Generation, "__next__", stop)

    return arm


def command(*arguments: object) -> list[str]:
    """The arguments of a process that is the command."""
    return [sys.executable, "-m", "bittorch", *map(str, arguments)]


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    options = {"capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run(command(*arguments), check=False, **options)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes: the error is another than that of a full disk, the way to it the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
