"""The answers of a batch, each on disk before the next is begun.

A row is appended by one write and synced, so a kill leaves at most one torn row, the last. Opening the file again cuts
that off and finds which rows are there: by their id in JSONL and CSV; in TXT, where answer k stands in line k, by their
number.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from bittorch.cli.batch_input import STANDARD_STREAM, Row
from bittorch.cli.console import shown, to_json
from bittorch.cli.errors import CommandError

FIELDS = ("id", "text", "finish_reason", "prompt_tokens", "new_tokens")
HEADER = (",".join(FIELDS) + "\n").encode()
Record = dict[str, Any]


class Output:
    """Where answers go.

    Args:
        path: of a file, which is continued if it is there; or ``-`` for stdout.
        format: ``txt``, ``jsonl`` or ``csv``.
        overwrite: begin anew.

    Attributes:
        done: ids of the rows that are there; in TXT their numbers.

    Raises:
        OSError: the file cannot be written.
        CommandError: another process writes it, or it holds what no batch wrote.
    """

    def __init__(self, path: str, format: str, overwrite: bool = False) -> None:
        self.path, self.format = path, format
        self.done: set[str] = set()
        self._lines = 0  # of TXT
        self._terminal = path == STANDARD_STREAM
        if self._terminal:
            self._file = -1
            self._append(HEADER if format == "csv" else b"")
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise CommandError(f"{path} is no ordinary file; name one, or - for stdout")
            self._lock()
            if overwrite:
                os.ftruncate(self._file, 0)
            self._resume()
        except BaseException:
            self.close()
            raise

    def has(self, row: Row) -> bool:
        """Whether the row's answer is there."""
        return row.number <= self._lines if self.format == "txt" else row.id in self.done

    def write(self, row: Row, record: Record) -> None:
        """Adds an answer. Raises OSError; the file then ends with the row before.

        Args:
            row: rows come in the order of the input.
            record: values of `FIELDS` but the id.
        """
        values = {"id": row.id, **record}
        if self.format == "jsonl":
            data = to_json(values) + "\n"
        elif self.format == "csv":
            data = _csv_line([values[name] for name in FIELDS])
        else:
            # Line k answers line k of the input, so a row without an answer leaves its line empty.
            data = "\n" * (row.number - self._lines - 1) + _escaped(values["text"]) + "\n"
        self._append(data.encode("utf-8", "backslashreplace"))
        self._lines = row.number
        self.done.add(row.id)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _append(self, data: bytes) -> None:
        if self._terminal:
            sys.stdout.flush()
            sys.stdout.buffer.write(shown(data.decode(), sys.stdout, json=self.format == "jsonl").encode())
            sys.stdout.buffer.flush()
            return
        before = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, before)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{self.path} is being written by another process; wait for it or name another file"
            ) from None

    def _resume(self) -> None:
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            data = file.read()
        whole = _end_of_csv(data) if self.format == "csv" else data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
            os.fsync(self._file)
        if self.format == "txt":
            self._lines = data.count(b"\n")
        elif self.format == "jsonl":
            self.done = {self._id_of(line, n) for n, line in enumerate(data[:whole].splitlines(), 1) if line.strip()}
        else:
            self.done = self._ids_of_csv(data[:whole])
            if not whole:
                self._append(HEADER)

    def _id_of(self, line: bytes, number: int) -> str:
        try:
            return str(json.loads(line)["id"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise self._foreign(f"line {number}") from None

    def _ids_of_csv(self, data: bytes) -> set[str]:
        try:
            rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
        except (ValueError, csv.Error):
            raise self._foreign("the file") from None
        if rows and tuple(rows[0]) != FIELDS:
            raise self._foreign("the header")
        if bad := [number for number, row in enumerate(rows[1:], 2) if len(row) != len(FIELDS)]:
            raise self._foreign(f"row {bad[0]}")
        return {row[0] for row in rows[1:]}

    def _foreign(self, what: str) -> CommandError:
        return CommandError(
            f"{self.path} is there, and {what} is not what bittorch batch writes; name another file, or --overwrite it"
        )


def _csv_line(values: Sequence[Any]) -> str:
    """Texts quoted whatever they hold; without NUL, at which Python 3.10 would not read the file again."""
    line = io.StringIO()
    fields = [value if isinstance(value, int) else str(value or "").replace("\0", "\ufffd") for value in values]
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerow(fields)
    return line.getvalue()


def _end_of_csv(data: bytes) -> int:
    """Where the last whole row ends: at a line end behind an even number of quotes."""
    end = position = quotes = 0
    for line in data.splitlines(keepends=True):
        position += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def _escaped(text: str) -> str:
    r"""On one line: \ and line ends as ``\\``, ``\n`` and ``\r``."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
