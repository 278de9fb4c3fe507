"""Rows of prompts from TXT, JSONL and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bittorch.cli.answer import Message, check_text
from bittorch.cli.errors import CommandError, UsageError, one_line

FORMATS = ("txt", "jsonl", "csv")
STANDARD_STREAM = "-"


class BadRow(Exception):
    """A row without a usable prompt."""


Value = tuple[Any, Any] | BadRow  # id or None, and prompt


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One prompt, or why there is none.

    Args:
        number: place among the rows, from 1; in TXT and JSONL the line's.
        id: of the row in the output; the number where the input has none.
        prompt: a text, or the messages of a conversation.
        problem: empty, or what is wrong; then there is no prompt.

    Attributes:
        blank: the prompt is empty, which is no mistake: such a row has no answer.
    """

    number: int
    id: str
    prompt: str | list[Message] = ""
    problem: str = ""

    @property
    def blank(self) -> bool:
        return not self.problem and isinstance(self.prompt, str) and not self.prompt.strip()


def format_of(path: str, given: str | None, option: str) -> str:
    """The format by name or, without one, by the file's ending. Raises UsageError."""
    if given is not None:
        return given
    ending = Path(path).suffix.lower().lstrip(".")
    ending = {"text": "txt", "ndjson": "jsonl"}.get(ending, ending)
    if ending not in FORMATS:
        raise UsageError(f"{path} does not end in .txt, .jsonl or .csv; say what it is with {option}")
    return ending


def read_rows(path: str, format: str, column: str) -> list[Row]:
    """All rows of a file, bad ones with their problem. Empty lines of JSONL and CSV are no rows.

    Args:
        path: of the file, or ``-`` for stdin.
        format: ``txt``, one prompt a line; ``jsonl``, an object per line; ``csv``, with a header.
        column: the key or column of the prompt; ``id`` is that of the id, and ``messages`` in JSONL that of a
            conversation.

    Raises:
        OSError: the file cannot be read.
        CommandError: a CSV file without that column.
    """
    data = sys.stdin.buffer.read() if path == STANDARD_STREAM else Path(path).read_bytes()
    # Bytes that are no UTF-8 become surrogates, which check_text finds again in the row that has them.
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="" if format == "csv" else None)
    values = {"txt": _txt, "jsonl": _jsonl, "csv": _csv}[format](text, column)
    return _unique(_row(number, value) for number, value in enumerate(values, 1) if value is not None)


def _txt(text: Iterable[str], column: str) -> Iterator[Value | None]:
    for line in text:
        yield None, line.rstrip("\n")


def _jsonl(text: Iterable[str], column: str) -> Iterator[Value | None]:
    for line in text:
        yield _object(line, column) if line.strip() else None


def _object(line: str, column: str) -> Value:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {one_line(error)}")
    if not isinstance(value, Mapping):
        return BadRow(f"must be a JSON object with {column!r}, got {type(value).__name__}")
    for key in (column, "messages"):
        if key in value:
            return value.get("id"), value[key]
    return BadRow(f"has neither {column!r} nor 'messages', but {', '.join(map(repr, value)) or 'nothing'}")


def _csv(text: Iterable[str], column: str) -> Iterator[Value | None]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise CommandError(f"the header of the CSV file is damaged: {error}") from None
    if column not in header:
        raise CommandError(f"the CSV file must have a column {column!r}, its header is {header}; name it with --column")
    place, identity = header.index(column), header.index("id") if "id" in header else None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield BadRow(f"not CSV: {error}")
            continue
        if fields is None:
            return
        if not fields:
            yield None
        elif len(fields) != len(header):
            yield BadRow(f"has {len(fields)} fields, the header {len(header)}")
        else:
            yield fields[identity] if identity is not None else None, fields[place]


def _row(number: int, value: Value) -> Row:
    if isinstance(value, BadRow):
        return Row(number, str(number), problem=str(value))
    identity, prompt = value
    if identity is None or identity == "":
        identity = number
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        return Row(number, str(number), problem=f"its id must be a text or an integer, got {identity!r}")
    try:
        check_text(str(identity), "its id")
        _check(prompt)
    except (BadRow, CommandError) as error:
        return Row(number, str(number), problem=str(error))
    return Row(number, str(identity), prompt)


def _check(prompt: Any) -> None:
    if isinstance(prompt, str):
        if prompt.strip():
            check_text(prompt)
        return
    if not isinstance(prompt, list) or not prompt:
        raise BadRow(f"the prompt must be a text or a list of messages, got {type(prompt).__name__}")
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str | None):
            raise BadRow(f"a message must have a role, and text as its content, got {json.dumps(message)[:80]}")
        check_text(content or "", "a message")


def _unique(rows: Iterable[Row]) -> list[Row]:
    """The rows, those with the id of an earlier one as bad ones."""
    seen: dict[str, int] = {}
    result = []
    for row in rows:
        if not row.problem and not row.blank and (first := seen.setdefault(row.id, row.number)) != row.number:
            row = Row(row.number, row.id, problem=f"its id {row.id!r} is that of row {first} too")
        result.append(row)
    return result
