"""The program: exit codes, usage, streams, errors."""

import argparse
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from bittorch._version import __version__
from bittorch.cli import arguments
from bittorch.cli.errors import UsageError, one_line
from bittorch.cli.program import COMMANDS, main, make_parser
from bittorch.models import Generation, GenerationConfig, Piece
from tests.cli.conftest import Command, command, run_process

ROOT = Path(__file__).parents[2]


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command that does something, by its name."""
    found = {}

    def visit(name: str, parser: argparse.ArgumentParser) -> None:
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for action in below:
            for sub, subparser in action.choices.items():
                visit(f"{name} {sub}".strip(), subparser)
        if not below:
            found[name] = parser

    visit("", make_parser())
    return found


def test_version(bittorch: Command) -> None:
    assert bittorch("--version")[:2] == (0, f"bittorch {__version__}\n")


def test_the_installed_command_is_this_program() -> None:
    assert 'bittorch = "bittorch.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_the_module_is_the_same_program() -> None:
    result = run_process("--version")
    assert (result.returncode, result.stdout) == (0, f"bittorch {__version__}\n")


@pytest.mark.parametrize("name", sorted(_parsers()))
def test_every_command_has_help_and_json(bittorch: Command, name: str) -> None:
    result = bittorch(*name.split(), "--help")
    assert result.code == 0
    for option in ("--json", "--quiet", "--plain", "--debug"):
        assert option in result.out
    assert "%(" not in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("run",),
        ("run", "a", "--temperatur", 1),
        ("run", "a", "--temperature", "hot"),
        ("run", "a", "--temperature", -1),
        ("run", "a", "--top-p", 0),
        ("run", "a", "--max-new-tokens", 0),
        ("run", "a", "--stop", ""),
        ("eval",),
        ("convert", "a"),
        ("run", "a", "--depth", 7),
        ("run", "a", "--head-depth", 7),
        ("run", "a", "--group-size", 64, "--depth", 0),
        ("run", "a", "--threads", 0),
        ("run", "a", "--device", "abacus"),
        ("run", "a", "--device", "meta"),
        ("bench", "--repeats", 0),
        ("batch", "a.txt", "b.txt", "--batch-size", 0),
        ("eval", "ppl", "a.txt", "--window", 0),
        ("eval", "ppl", "a.txt", "--window", 1),
        ("eval", "ppl", "a.txt", "--stride", 0),
        ("eval", "ppl", "a.txt", "--window", 8, "--stride", 9),
        ("eval", "ppl", "a.txt", "--max-bytes", 0),
    ],
    ids=str,
)
def test_wrong_usage_is_exit_code_2(bittorch: Command, arguments: tuple[object, ...]) -> None:
    result = bittorch(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "error" in result.err
    assert "Traceback" not in result.err
    value = bittorch(*arguments, "--json").json  # FIELD N15
    assert (value["type"], value["exit_code"]) == ("error", 2)
    assert value["error"] in " ".join(result.err.split())


@pytest.mark.parametrize("arguments", [("run", "a", "--model"), ("info",), ("convert", "a", "b", "--to")], ids=str)
def test_json_has_the_error(bittorch: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:  # FIELD N15
    last = "bittorch" if arguments[0] == "convert" else tmp_path / "none"
    result = bittorch(*arguments, last, "--json")
    assert result.json == {
        "type": "error",
        "error": result.err.removeprefix("bittorch: error: ").strip(),
        "exit_code": 1,
    }
    assert result.code == 1


def test_without_a_command_the_commands_are_listed(bittorch: Command) -> None:
    result = bittorch()
    assert (result.code, result.out) == (2, "")
    for name in ("chat", "run", "batch", "serve", "convert", "info", "bench", "eval", "cache", "completion", "doctor"):
        assert re.search(rf"^    {name}\s", result.err, re.MULTILINE)


def test_usage_errors_name_both_values(bittorch: Command) -> None:
    assert "top_p must be a finite number above 0 and at most 1, got 0.0" in bittorch("run", "a", "--top-p", 0).err
    assert "--depth must be from 0 to 6, got 7" in bittorch("run", "a", "--depth", 7).err


@pytest.mark.parametrize(
    "arguments", [("run", "a", "--model"), ("chat", "--model"), ("info",), ("bench", "--model")], ids=str
)
def test_a_missing_model_is_one_line(bittorch: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = bittorch(*arguments, tmp_path / "none")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"bittorch: error: no \w+ at .*none.*\n", result.err)


def test_a_missing_device_is_one_line(bittorch: Command, model: Path) -> None:
    result = bittorch("run", "a", "--model", model, "--device", "cuda:99")
    assert result.code == 1
    assert "--device cuda:99: there are" in result.err


def test_debug_shows_the_traceback(bittorch: Command, tmp_path: Path) -> None:
    assert "Traceback" not in bittorch("info", tmp_path / "none").err
    assert "Traceback" in bittorch("info", tmp_path / "none", "--debug").err


def test_a_fault_of_the_program_says_its_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: object) -> int:
        raise LookupError("two\nlines")

    monkeypatch.setattr("bittorch.cli.info.execute", fault)
    assert main(["info"]) == 1
    assert capsys.readouterr() == ("", "bittorch: error: LookupError: two lines\n")


def test_a_panic_of_a_library_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # FIELD R11
    class PanicException(BaseException):
        pass

    def panic(*args: object) -> int:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("bittorch.cli.info.execute", panic)
    assert main(["info"]) == 1
    assert capsys.readouterr() == ("", "bittorch: error: PanicException: index out of bounds\n")


def test_one_line_of_errors() -> None:
    assert one_line(FileNotFoundError(2, "No such file or directory", "a")) == "a: No such file or directory"
    assert one_line(OSError("plain")) == "plain"
    assert one_line(MemoryError()) == "out of memory"
    assert one_line(ValueError()) == "ValueError"


def test_ctrl_c_is_exit_code_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bittorch.cli.info.execute", stop)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "bittorch: error: interrupted\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback(model: Path) -> None:
    with subprocess.Popen(
        command("run", "a", "--model", model, "--max-new-tokens", 10**6, "--ignore-eos"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.slow
def test_a_reader_that_was_never_there_is_no_traceback() -> None:
    # With PYTHONUNBUFFERED argparse would meet the error, and pass over it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("--help"), env=environment, **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.slow
def test_a_full_stdout_is_a_failure(model: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command("info", model), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        pytest.param(["run", "-"], 0, 1, marks=pytest.mark.slow),  # an empty prompt
        pytest.param(["--version"], 1, 0, marks=pytest.mark.slow),
        pytest.param(["run", "a", "--max-new-tokens", "2"], 2, 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_closed_stream_is_an_empty_one(model: Path, arguments: list[str], closed: int, code: int) -> None:
    named = [] if arguments == ["--version"] else ["--model", str(model)]
    result = run_process(*arguments, *named, preexec_fn=lambda: os.close(closed))
    assert result.returncode == code
    assert "Error" not in result.stderr


@pytest.mark.slow
def test_arguments_are_utf8_whatever_the_locale(bittorch: Command, model: Path) -> None:
    expected = bittorch("run", "Grüße", "--model", model, "--max-new-tokens", 4, "--stop", "ß", "--json").json
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = run_process(
        "run", "Grüße", "--model", model, "--max-new-tokens", 4, "--stop", "ß", "--json", env=environment
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["stats"]["prompt_tokens"] == expected["stats"]["prompt_tokens"]


def test_sampling_options_are_those_of_generation_config() -> None:
    options = {option.field for option in arguments.SAMPLING} | {
        "stop",
        "ignore_eos",
        "overflow",
        "skip_special_tokens",
    }
    assert options == {field.name for field in dataclasses.fields(GenerationConfig)}
    parser = arguments.sampling_options()
    assert arguments.generation_config(parser.parse_args([])) == GenerationConfig()
    line = (
        "--top-k 3 --stop a --stop b --ignore-eos --overflow stop --keep-special-tokens --presence-penalty -1 --seed 4"
    )
    assert arguments.generation_config(parser.parse_args(line.split()), max_new_tokens=7) == GenerationConfig(
        max_new_tokens=7,
        top_k=3,
        stop=("a", "b"),
        ignore_eos=True,
        overflow="stop",
        skip_special_tokens=False,
        presence_penalty=-1,
        seed=4,
    )
    with pytest.raises(UsageError, match="min_p"):
        arguments.generation_config(parser.parse_args(["--min-p", "2"]))


def test_the_documentation_names_every_option() -> None:
    text = (ROOT / "docs" / "reference" / "command_line.md").read_text()
    for name, parser in _parsers().items():
        assert f"bittorch {name}" in text
        for action in parser._actions:
            for option in action.option_strings:
                assert option in (*text.split(), "-h", "--help") or f"`{option}" in text, (name, option)


def test_commands_are_listed_once() -> None:
    assert len(COMMANDS) == len(set(COMMANDS)) == 12


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*args: object) -> int:
        warnings.warn("two\nlines", stacklevel=1)
        return 0

    monkeypatch.setattr("bittorch.cli.info.execute", warn)
    assert main(["info"]) == 0
    assert capsys.readouterr() == ("", "bittorch: warning: two lines\n")


def test_doctor_json(bittorch: Command) -> None:
    result = bittorch("doctor", "--json")
    assert result.code == 0
    assert result.json["ok"] is True
    assert result.json["checks"]
    assert result.json["version"] == __version__


def test_a_terminal_without_a_character_ends_no_answer(
    bittorch: Command, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    monkeypatch.setattr(Generation, "__next__", _say("\u2192 a"))
    assert main(["run", "x", "--model", str(model)]) == 0
    assert screen.getvalue() == b"\\u2192 a\n"


def _say(text: str) -> Callable[[Generation], Piece]:
    """A generation of one piece."""
    pieces = iter([Piece(0, text, 0, "eos")])
    return lambda generation: next(pieces)
