"""Scripts for shells."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bittorch.cli.completion import bash, fish, parsers
from bittorch.cli.program import make_parser
from tests.cli.conftest import Command

ASK = """source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_bittorch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["bittorch", ""], {"chat", "run", "batch", "cache", "completion", "doctor", "--version"}),
        (["bittorch", "com"], {"completion"}),
        (["bittorch", "run", "--max"], {"--max-new-tokens"}),
        (["bittorch", "run", "--quiet", "--dtype", "b"], {"bfloat16"}),
        (["bittorch", "--version", "eval", "ppl", "--win"], {"--window"}),
        (["bittorch", "eval", "p"], {"ppl"}),
        (["bittorch", "run", "chat", "--raw", "--st"], {"--stop", "--stats"}),
        (["bittorch", "batch", "in", "out", "--input-format", "j"], {"jsonl"}),
        (["bittorch", "convert", "a", "b", "--to", "gguf-tq"], {"gguf-tq1_0", "gguf-tq2_0"}),
        (["bittorch", "completion", "f"], {"fish"}),
        (["bittorch", "run", "--model", "tok"], set()),  # bash then takes names of files
    ],
    ids=lambda words: " ".join(sorted(words) if isinstance(words, set) else words),  # one order in every process
)
def test_bash_completes(tmp_path: Path, typed: list[str], expected: set[str]) -> None:  # FIELD N15
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    (tmp_path / "script").write_text(bash(make_parser()))
    words = " ".join(f"'{word}'" for word in typed)
    ask = ASK.format(script=tmp_path / "script", words=words)
    result = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stderr == ""
    given = set(result.stdout.split())
    assert given >= expected if typed[-1] == "" else given == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command_and_option(bittorch: Command, shell: str) -> None:  # FIELD N15
    result = bittorch("completion", shell)
    assert result.code == 0
    for _, parser, below in parsers(make_parser()):
        options = [option for action in parser._actions for option in action.option_strings]
        for option in options:
            flag = option if shell != "fish" else f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            assert flag in result.out, option
        assert all(name in result.out for name in below)
    if shutil.which(shell):
        check = [shell, "-n"] if shell != "fish" else [shell, "--no-execute"]
        assert subprocess.run(check, input=result.out, text=True, check=False).returncode == 0
    assert bittorch("completion", shell, "--json").json == {"shell": shell, "script": result.out}


def test_an_unknown_shell_is_wrong_usage(bittorch: Command) -> None:
    result = bittorch("completion", "cmd")
    assert result.code == 2
    assert "bash" in result.err


def test_fish_quotes_its_words() -> None:
    lines = [line for line in fish(make_parser()).splitlines() if " -l version" in line]
    assert len(lines) == 1
    assert "'show program'\"'\"'s version number and exit'" in lines[0]
