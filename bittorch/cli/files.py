"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from bittorch.cli.errors import CommandError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it; what a link leads to is replaced, not the link.

    Raises:
        OSError: it names ``path``; the old file then stands as it was.
        CommandError: a device or the like, which must not be replaced by a file.
    """
    named, path = path, Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise CommandError(f"{named} is no ordinary file; name another")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(named)) from None
        raise


def read_text(path: Path) -> str:
    """A file of UTF-8, with or without a mark at its beginning. Raises OSError, CommandError."""
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, name: str) -> str:
    """Raises CommandError where it is no UTF-8, with the place."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{name} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None
