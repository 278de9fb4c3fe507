"""What a command prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import codecs
import importlib.util
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

_CONTROL = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0)))) - {"\t", "\n"}
_ESCAPES = str.maketrans({character: f"\\x{ord(character):02x}" for character in _CONTROL})
_JSON_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in _CONTROL})
SECONDS_BETWEEN_SIGNS = 1.0  # of life
SECONDS_BETWEEN_LINES = 5.0  # of a plain progress report that no terminal shows


class Progress(Protocol):
    """Reports how far a command is."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


class Console:
    """The two streams of the program.

    Args:
        json: results are JSON, one object or one per line.
        quiet: nothing on stderr but errors.
        plain: rich is not used even where it is installed.
        stdout, stderr: the process's own by default.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        plain: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json, self.quiet = json, quiet
        self.stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr
        self._above_bar: Callable[[str], None] | None = None  # writes a line while a bar is shown
        self._rich = not plain and importlib.util.find_spec("rich") is not None

    def write(self, text: str) -> None:
        """Text of an answer, as it comes; nothing with ``json``."""
        if text and not self.json:
            self.stdout.write(shown(text, self.stdout))
            self.stdout.flush()

    def line(self, text: str = "") -> None:
        """A line of the result; nothing with ``json``."""
        self.write(text + "\n")

    def object(self, value: Mapping[str, Any]) -> None:
        """A line of JSON; nothing without ``json``."""
        if self.json:
            # A terminal's own escapes of what its encoding lacks are none of JSON's.
            ascii_only = codecs.lookup(getattr(self.stdout, "encoding", None) or "utf-8").name != "utf-8"
            self.stdout.write(shown(to_json(value, ascii_only), self.stdout, json=True) + "\n")
            self.stdout.flush()

    def failure(self, text: str, code: int) -> None:
        """Why the command failed, as JSON; nothing without ``json``."""
        self.object({"type": "error", "error": text, "exit_code": code})

    def note(self, text: str) -> None:
        """A line on stderr that no result depends on."""
        if not self.quiet:
            self._say(f"bittorch: {text}")

    def error(self, text: str) -> None:
        """A line on stderr that says why the command failed."""
        self._say(f"bittorch: error: {text}")

    def _say(self, text: str) -> None:
        if self._above_bar is not None:
            self._above_bar(shown(text, self.stderr))
            return
        self.stderr.write(shown(text, self.stderr) + "\n")
        self.stderr.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows in columns: drawn by rich on a terminal, else text in columns of equal width; nothing with ``json``."""
        if self.json:
            return
        if self._rich and self.stdout.isatty():
            from rich.console import Console as RichConsole
            from rich.table import Table

            table = Table()
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*(shown(cell, self.stdout).replace("[", "\\[") for cell in row))
            RichConsole(file=self.stdout).print(table)
            return
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        for row in [columns, *rows]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows on a terminal that something is under way, and for how long; the line is gone afterwards."""
        if self.quiet or not self.stderr.isatty() or self._above_bar is not None:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._count_seconds, args=(text, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _count_seconds(self, text: str, over: threading.Event) -> None:
        begin, line = time.monotonic(), ""
        while not over.wait(SECONDS_BETWEEN_SIGNS):
            line = f"{text}, {time.monotonic() - begin:.0f} s"
            self.stderr.write(f"\r{line}")
            self.stderr.flush()
        if line:
            self.stderr.write("\r" + " " * len(line) + "\r")
            self.stderr.flush()

    @contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A function that is told how far the work is, and shows it on stderr."""
        if self.quiet:
            yield lambda done, total=None: None
        elif self._rich and self.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            parts = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            console = RichConsole(file=self.stderr)
            self._above_bar = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
            try:
                with RichProgress(*parts, console=console) as bar:
                    yield _bar_progress(bar, bar.add_task(what, total=None))
            finally:
                self._above_bar = None
        else:
            report = _PlainProgress(self.stderr, what)
            try:
                yield report
            finally:
                report.end()


def _bar_progress(bar: Any, task: Any) -> Progress:
    """Where the work begins is no work done: the time that is left is estimated from what comes after."""
    begun = False

    def progress(done: int, total: int | None = None) -> None:
        nonlocal begun
        if begun:
            bar.update(task, completed=done, total=total)
        else:
            bar.reset(task, completed=done, total=total)
        begun = True

    return progress


class _PlainProgress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self, stream: TextIO, what: str) -> None:
        self._stream, self._what, self._live = stream, what, stream.isatty()
        self._said = time.monotonic()
        self._text = self._shown = ""

    def __call__(self, done: int, total: int | None = None) -> None:
        self._text = f"{self._what} {done}" + ("" if total is None else f"/{total}")
        now = time.monotonic()
        if self._live:
            self._stream.write(f"\r{self._text}")
        elif now - self._said > SECONDS_BETWEEN_LINES:
            self._stream.write(f"bittorch: {self._text}\n")
            self._said, self._shown = now, self._text
        self._stream.flush()

    def end(self) -> None:
        if self._live and self._text:
            self._stream.write("\n")
        elif self._shown and self._text != self._shown:  # short work is not worth a line
            self._stream.write(f"bittorch: {self._text}\n")
        self._stream.flush()


def shown(text: str, stream: TextIO, *, json: bool = False) -> str:
    """Text for a stream: on a terminal, control characters but tabs and line ends are escaped.

    A model's answer or a file's name may hold sequences that a terminal obeys: they move its cursor, or type.
    In JSON the escapes are JSON's own, so the value is the same.
    """
    if not stream.isatty():
        return text
    return text.translate(_JSON_ESCAPES if json else _ESCAPES)


def to_json(value: object, ascii_only: bool = False) -> str:
    """One line of standard JSON: what is no finite number is null, and what UTF-8 cannot hold is escaped."""
    text = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def size_text(count: float) -> str:
    """Bytes in powers of 1000, with three digits."""
    units = ("B", "kB", "MB", "GB")
    power = min(int(math.log10(count)) // 3, 3) if count >= 1 else 0
    value = count / 1000**power
    return f"{value:.3g} {units[power]}" if value < 999.5 else f"{value:.0f} {units[power]}"


def rate_text(value: float | None, unit: str = "tokens/s") -> str:
    """A rate, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:.1f} {unit}"
