"""Typed lines of a chat: cursor keys, a history that lasts, and completion by Tab, where Python has readline."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from bittorch._env import home_cache

HISTORY_LINES = 1000
FILE_COMMANDS = ("/load", "/save")


@contextlib.contextmanager
def line_editing(interactive: bool, commands: Iterable[str]) -> Iterator[None]:
    """Makes `input` a line editor while the block runs.

    Args:
        interactive: False leaves everything as it is.
        commands: names that Tab completes behind a slash.
    """
    try:
        import readline
    except ImportError:
        interactive = False
    if not interactive:
        yield
        return
    before = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(_completer(readline, [f"/{name}" for name in commands]))
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        with _history(readline):
            yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])


@contextlib.contextmanager
def _history(readline: ModuleType) -> Iterator[None]:
    directory = home_cache()
    if directory is None:  # what was typed is not for a temporary directory
        yield
        return
    file = directory / "chat_history"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(file)


def _completer(readline: ModuleType, commands: list[str]) -> Callable[[str, int], str | None]:
    def complete(word: str, index: int) -> str | None:
        found = completions(readline.get_line_buffer()[: readline.get_endidx()], word, commands)
        return found[index] if index < len(found) else None

    return complete


def completions(line: str, word: str, commands: Iterable[str]) -> list[str]:
    """What the last word of a line may become.

    Args:
        line: up to the cursor.
        word: the part behind its last space.
        commands: with their slashes.
    """
    if line.lstrip() == word:
        return [f"{command} " for command in sorted(commands) if word and command.startswith(word)]
    if line.split()[0] not in FILE_COMMANDS:
        return []
    found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
    home = os.path.expanduser("~")
    shown = [f"~{name[len(home) :]}" if word.startswith("~/") and name.startswith(home) else name for name in found]
    return [f"{name}/" if os.path.isdir(path) else f"{name} " for name, path in zip(shown, found, strict=True)]
