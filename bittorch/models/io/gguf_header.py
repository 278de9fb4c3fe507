"""The header of a GGUF file: entries, tensor table and where the bytes are, checked before anything is read.

Source: the GGUF specification of the ggml project, versions 2 and 3.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import struct
from typing import Any

import numpy as np

from bittorch.models.io.errors import FormatError
from bittorch.models.io.gguf_types import REFUSED, REUSED, TYPES, GGUFType, block_bytes, meaning
from bittorch.models.io.mapped_file import MappedFile

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_DIMS, MAX_NESTING = 4, 4
_WINDOW, _SINGLY = 1 << 18, 64  # bytes that are searched for strings at once; strings that are read one by one


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor's bytes are; shape as torch has it, rows first; offset from the file's beginning."""

    name: str
    type: GGUFType
    shape: tuple[int, ...]
    offset: int
    bytes: int
    file: MappedFile


class _Cursor:
    """Reads forward; every length is compared with what the file still has before it is believed."""

    def __init__(self, file: MappedFile) -> None:
        self.path, self.data, self.at = file.path, memoryview(file.view(0, file.size).data), 0

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.data) - self.at:
            raise FormatError(
                f"{self.path} announces {count} bytes of {what} at byte {self.at}, but ends at {len(self.data)}; "
                "the file is truncated or damaged"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things of at least so many bytes each."""
        count = self.number("Q", f"the number of {what}")
        if count * least_bytes > len(self.data) - self.at:
            raise FormatError(f"{self.path} announces {count} {what} at byte {self.at}, more than its bytes can hold")
        return int(count)

    def string(self, what: str) -> str:
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """Vocabularies have hundreds of thousands: as many at once as `_short_strings` finds, others one by one."""
        data, end, length_at = self.data, len(self.data), struct.Struct("<Q").unpack_from
        found: list[str] = []
        while len(found) < count:
            if count - len(found) >= _SINGLY:
                texts, read = _short_strings(data[self.at : self.at + _WINDOW], count - len(found))
                found += texts
                self.at += read
            at = self.at
            for _ in range(min(_SINGLY, count - len(found))):
                if at + 8 > end or (length := length_at(data, at)[0]) > end - at - 8:
                    self.at = at
                    self.take(self.number("Q", f"the length of {what}"), what)
                found.append(_text(data[at + 8 : at + 8 + length]))
                at += 8 + length
            self.at = at
        return found

    def value(self, kind: int, what: str, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or nesting >= MAX_NESTING:
            raise FormatError(f"{self.path}: {what} is of the unknown type {kind}, or nested too deeply")
        item = self.number("I", f"the type of {what}")
        if item in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[item])
            count = self.count(size, f"items of {what}")
            return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.take(count * size, what)))
        count = self.count(12 if item == _ARRAY else 8, f"items of {what}")
        if item == _STRING:
            return self.strings(count, what)
        return [self.value(item, what, nesting + 1) for _ in range(count)]


def _text(data: memoryview) -> str:
    """Vocabularies hold bytes that are no UTF-8; nothing is lost this way."""
    return str(data, "utf-8", "surrogateescape")


def _short_strings(data: memoryview, count: int) -> tuple[list[str], int]:
    """The first strings of an array, at most ``count``, and their bytes.

    Of a string of 1 to 255 bytes, none of them zero, the length is a byte and seven zeros: it is found by these, all at
    once. Ends before the first other string, and where the bytes end.
    """
    values = np.frombuffer(data, np.uint8)
    zeros = np.flatnonzero(values == 0)
    runs = zeros[: len(zeros) // 7 * 7].reshape(-1, 7)[:count]
    begins = runs[:, 0] - 1
    ends = begins + 8 + values[begins]  # of the first run there may be no byte before: then begins is -1
    right = (runs[:, 6] == begins + 7) & (ends <= len(values))
    right &= begins == np.concatenate([[0], ends[:-1]])
    found = len(right) if right.all() else int(right.argmin())
    if found and np.searchsorted(zeros, ends[found - 1]) != 7 * found:
        found -= 1  # the last one has a zero
    if not found:
        return [], 0
    read = int(ends[found - 1])
    texts = values[:read].copy()
    texts[begins[:found]] = 0  # what parts them, once the other zeros are gone
    texts = texts[values[:read] != 0]
    return _text(texts.data).split("\0")[1:], read


def read_gguf(file: MappedFile) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    """Entries and tensors of a GGUF file, both by name.

    Raises:
        FormatError: not GGUF, big-endian, an unknown version or tensor type, names that stand twice, counts, sizes or
            offsets that contradict each other or the file.
    """
    cursor = _Cursor(file)
    if bytes(cursor.take(4, "magic")) != b"GGUF":
        raise FormatError(
            f"{file.path} does not begin with 'GGUF'; it is no GGUF file (of safetensors name the directory, which has "
            "config.json too)"
        )
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        hint = "it is big-endian, which is not read" if version in (2 << 24, 3 << 24) else "known are 2 and 3"
        raise FormatError(f"{file.path} has GGUF version {version}; {hint}")
    tensor_count = cursor.count(24, "tensors")
    entries: dict[str, Any] = {}
    for _ in range(cursor.count(13, "entries")):
        key = cursor.string("a key")
        if key in entries:
            raise FormatError(f"{file.path} has the entry {key!r:.100} twice")
        entries[key] = cursor.value(cursor.number("I", f"the type of {key!r:.100}"), f"{key!r:.100}")
    alignment = entries.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise FormatError(f"{file.path} has general.alignment {alignment!r:.40}; it must be a power of 2")
    table = [_tensor_entry(cursor) for _ in range(tensor_count)]
    begin = -(-cursor.at // alignment) * alignment
    return entries, _place(file, table, begin, alignment)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type id and offset from the data's beginning."""
    name = cursor.string("a tensor's name")
    dims = cursor.number("I", f"the dimensions of {name!r:.100}")
    if dims > MAX_DIMS:
        raise FormatError(f"{cursor.path}: tensor {name!r:.100} has {dims} dimensions; {MAX_DIMS} are allowed")
    shape = struct.unpack(f"<{dims}Q", cursor.take(8 * dims, f"the shape of {name!r:.100}"))[::-1]
    return name, shape, cursor.number("I", f"the type of {name!r:.100}"), cursor.number("Q", f"{name!r:.100}")


def _place(
    file: MappedFile, table: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int
) -> dict[str, GGUFTensor]:
    kinds = _kinds(file, table, file.size - begin, alignment)
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, type_id, offset in table:
        where = f"{file.path}: tensor {name!r:.100}"
        if name in tensors:
            raise FormatError(f"{where} stands twice in the table")
        kind = kinds[type_id]
        size = _bytes(kind, shape, where)
        if offset % alignment:
            raise FormatError(f"{where} lies at offset {offset}, which is no multiple of the alignment {alignment}")
        if offset + size > file.size - begin:
            raise FormatError(
                f"{where} ({kind.name} {shape}) takes {size} bytes from offset {offset}, but the file has "
                f"{max(0, file.size - begin)} bytes of data; it is truncated or damaged"
            )
        tensors[name] = GGUFTensor(name, kind, shape, begin + offset, size, file)
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.bytes))
    for one, other in itertools.pairwise(ordered):
        if one.offset + one.bytes > other.offset:
            raise FormatError(
                f"{file.path}: tensors {one.name!r:.100} ({one.type.name} {one.shape}) and {other.name!r:.100} overlap"
            )
    return tensors


def _kinds(
    file: MappedFile, table: list[tuple[str, tuple[int, ...], int, int]], size: int, alignment: int
) -> dict[int, GGUFType]:
    """The type of each id in the table."""
    ends = sorted({offset for *_, offset in table} | {size})
    places: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    first: dict[int, str] = {}
    for name, shape, type_id, offset in table:
        first.setdefault(type_id, name)
        if type_id in REUSED:
            end = ends[min(bisect.bisect_right(ends, offset), len(ends) - 1)]
            places.setdefault(type_id, []).append((shape, end - offset))
    kinds: dict[int, GGUFType] = {}
    for type_id, name in first.items():
        found = meaning(type_id, places[type_id], alignment) if type_id in REUSED else TYPES.get(type_id)
        if isinstance(found, GGUFType):
            kinds[type_id] = found
            continue
        reason = REFUSED.get(type_id, "a type this version does not know, perhaps of a fork")
        reason = reason if found is None else f"{found.name} ({TYPES[type_id].name} of ggml takes more bytes)"
        raise FormatError(f"{file.path}: tensor {name!r:.100} has type id {type_id}: {reason}")
    return kinds


def _bytes(kind: GGUFType, shape: tuple[int, ...], where: str) -> int:
    if math.prod(shape) >= 2**62 or min(shape, default=1) < 1:
        raise FormatError(f"{where} has the impossible shape {shape}")
    size = block_bytes(kind, shape)
    if size is None:
        raise FormatError(
            f"{where} has rows of {shape[-1] if shape else 1} weights, but {kind.name} stores {kind.weights} a block"
        )
    return size
