"""What a chat does with keys: history, and completion by Tab."""

import os
from pathlib import Path

import pytest

from bittorch.cli.line_editing import completions, line_editing

COMMANDS = ("/help", "/save", "/system", "/load")


def test_a_chat_without_a_home_keeps_no_history(monkeypatch: pytest.MonkeyPatch) -> None:  # FIELD R16
    readline = pytest.importorskip("readline")
    written: list[Path] = []
    monkeypatch.setattr("bittorch.cli.line_editing.home_cache", lambda: None)
    monkeypatch.setattr(readline, "write_history_file", written.append)
    with line_editing(True, COMMANDS):
        pass
    assert not written
    monkeypatch.undo()


def test_commands_are_completed_at_the_beginning_alone() -> None:  # FIELD N15
    assert completions("/s", "/s", COMMANDS) == ["/save ", "/system "]
    assert completions("  /he", "/he", COMMANDS) == ["/help "]
    assert completions("say /s", "/s", COMMANDS) == []
    assert completions("", "", COMMANDS) == []
    assert completions("hello", "hello", COMMANDS) == []


def test_files_are_completed_behind_the_commands_that_take_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # FIELD N15
    (tmp_path / "chat [1].json").write_text("")
    (tmp_path / "chats").mkdir()
    for command in ("/load", "/save"):
        word = f"{tmp_path}/chat"
        expected = [f"{tmp_path}/chat [1].json ", f"{tmp_path}/chats/"]
        assert completions(f"{command} {word}", word, COMMANDS) == expected
    assert completions(f"/system {word}", word, COMMANDS) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions("/load ~/chats", "~/chats", COMMANDS) == ["~/chats/"]
    monkeypatch.chdir(tmp_path)
    assert completions("/load chats", "chats", COMMANDS) == [f"chats{os.sep}"]


def test_the_line_editor_is_given_back() -> None:
    readline = pytest.importorskip("readline")
    before = readline.get_completer(), readline.get_completer_delims()
    with line_editing(True, COMMANDS):
        assert readline.get_completer() is not None
    assert (readline.get_completer(), readline.get_completer_delims()) == before
