"""GGUF files in parts: ``name-00001-of-00003.gguf`` and so on, each a GGUF file with some of the tensors.

The first part has the entries of the whole. Each part has ``split.no`` from 0 on, ``split.count`` and
``split.tensors.count``, the tensors of all parts. Source: gguf-split of llama.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bittorch.models.io.errors import FormatError
from bittorch.models.io.gguf_header import GGUFTensor, read_gguf
from bittorch.models.io.mapped_file import MappedFile

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

Read = tuple[MappedFile, dict[str, Any], dict[str, GGUFTensor]]


def read_parts(path: Path) -> tuple[tuple[MappedFile, ...], dict[str, Any], dict[str, GGUFTensor]]:
    """All files of a model, the entries of the first, and the tensors of all by name.

    Args:
        path: the file, or any part.

    Raises:
        FormatError: as `read_gguf`; parts that are missing, out of order, or contradict each other.
    """
    file, entries, table = _read(path)
    count = entries.get(COUNT, 1)
    if type(count) is not int or not 0 < count < 100_000:
        raise FormatError(f"{path} has {COUNT} {count!r:.40}; it must be a number of files")
    if count == 1:
        return (file,), entries, table
    paths = _paths(path, count)
    parts = [(file, entries, table) if part == path else _read(part) for part in paths]
    for number, part in enumerate(parts):
        _check_part(part, number, parts[0][1])
    tensors: dict[str, GGUFTensor] = {}
    for part_file, _, found in parts:
        if twice := sorted(tensors.keys() & found.keys()):
            raise FormatError(f"{part_file.path} and {tensors[twice[0]].file.path.name} both have tensor {twice[0]!r}")
        tensors |= found
    expected = parts[0][1].get(TENSORS, len(tensors))
    if len(tensors) != expected:
        raise FormatError(f"{paths[0]} says {TENSORS} {expected!r:.40}, but the {count} parts have {len(tensors)}")
    return tuple(part[0] for part in parts), parts[0][1], tensors


def _read(path: Path) -> Read:
    file = MappedFile(path)
    return file, *read_gguf(file)


def _paths(path: Path, count: int) -> list[Path]:
    """The files of all parts, in order."""
    named = _NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise FormatError(
            f"{path} is one of {count} parts ({COUNT}); the name of the first must end in "
            f"-00001-of-{count:05d}.gguf, so that the others can be found"
        )
    paths = [path.with_name(f"{named[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if absent := [part.name for part in paths if not part.is_file()]:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise FormatError(f"{path} lacks {len(absent)} of its {count} parts: {', '.join(absent[:10])}{more}")
    return paths


def _check_part(part: Read, number: int, first: dict[str, Any]) -> None:
    file, entries, _ = part
    if entries.get(NUMBER) != number:
        raise FormatError(
            f"{file.path} has {NUMBER} {entries.get(NUMBER)!r:.40}; by its name it must be {number}: parts are mixed up"
        )
    for key, value in entries.items():
        if key != NUMBER and first.get(key) != value:
            raise FormatError(
                f"{file.path} has the entry {key!r:.100} {value!r:.100}, the first part {first.get(key)!r:.100}; "
                "the parts are of different models"
            )
