"""Answers of a batch on disk, with texts that are hard to write."""

import io
import json
from pathlib import Path

import pytest

from bittorch.cli.batch_input import FORMATS, Row
from bittorch.cli.batch_output import Output
from bittorch.cli.errors import CommandError

TEXTS = ['a\n"b"\r\n,c', "", '"', '""\n\n', "\r", "ü\u2028\x85 \\n", '",\n"2","x', "plain"]


def _write(path: Path, format: str) -> list[int]:
    """Adds the rows that are missing. Returns their numbers."""
    added = []
    with Output(str(path), format) as output:
        for number, text in enumerate(TEXTS, 1):
            row = Row(number, f"id {number}\n", text)
            if not output.has(row):
                output.write(row, {"text": text, "finish_reason": "eos", "prompt_tokens": 1, "new_tokens": 2})
                added.append(number)
    return added


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_anywhere_becomes_whole_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # thousands of them take a minute
    path = tmp_path / "out"
    assert _write(path, format) == list(range(1, len(TEXTS) + 1))
    whole = path.read_bytes()
    assert _write(path, format) == []
    counts = set()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        counts.add(len(_write(path, format)))
        assert path.read_bytes() == whole, cut
    assert counts == set(range(1, len(TEXTS) + 1))


class Terminal(io.TextIOWrapper):
    """A terminal, and what it was given."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("format", FORMATS)
def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch, format: str) -> None:  # FIELD R18
    screen, text = io.BytesIO(), "a\x1b[2J\x9b31m\x7f\rü"
    monkeypatch.setattr("sys.stdout", Terminal(screen))
    record = {"text": text, "finish_reason": "eos", "prompt_tokens": 1, "new_tokens": 2}
    with Output("-", format) as output:
        output.write(Row(1, "1", "x"), record)
    given = screen.getvalue().decode()
    assert not set(given) & {"\x1b", "\x9b", "\x7f", "\r"}
    if format == "jsonl":
        assert json.loads(given)["text"] == text
    else:
        assert "a\\x1b[2J\\x9b31m\\x7f" in given


def test_txt_leaves_lines_without_an_answer_empty(tmp_path: Path) -> None:
    with Output(str(tmp_path / "out.txt"), "txt") as output:
        for number in (2, 5):
            output.write(Row(number, str(number)), {"text": f"answer\\{number}\n"})
        assert output.has(Row(4, "4"))
        assert not output.has(Row(6, "6"))
    assert (tmp_path / "out.txt").read_text() == "\nanswer\\\\2\\n\n\n\nanswer\\\\5\\n\n"


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(CommandError, match="no ordinary file"):
        Output(path, "jsonl")


@pytest.mark.parametrize(
    ("format", "data", "what"),
    [
        ("jsonl", b'{"id": 1}\nnot JSON\n{"id": 3}\n', "line 2"),
        ("jsonl", b"[]\n", "line 1"),
        ("jsonl", b'\xff{"id": 1}\n', "line 1"),
        ("csv", b"a,b\n", "the header"),
        ("csv", b"id,text,finish_reason,prompt_tokens,new_tokens\n1,2\n", "row 2"),
        ("csv", b"id,\xff\n", "the file"),
    ],
)
def test_a_foreign_file_is_refused_and_kept(tmp_path: Path, format: str, data: bytes, what: str) -> None:
    (tmp_path / "out").write_bytes(data)
    with pytest.raises(CommandError, match=what):
        Output(str(tmp_path / "out"), format)
    assert (tmp_path / "out").read_bytes() == data
