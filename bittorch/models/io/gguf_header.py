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

from bittorch.models.io.errors import FormatError
from bittorch.models.io.mapped_file import MappedFile


@dataclasses.dataclass(frozen=True)
class GGUFType:
    """A tensor type: a block holds ``weights`` in ``bytes``; ``tail`` bytes follow the last block."""

    name: str
    weights: int
    bytes: int
    tail: int = 0


TYPES = {
    0: GGUFType("F32", 1, 4),
    1: GGUFType("F16", 1, 2),
    2: GGUFType("Q4_0", 32, 18),
    3: GGUFType("Q4_1", 32, 20),
    6: GGUFType("Q5_0", 32, 22),
    7: GGUFType("Q5_1", 32, 24),
    8: GGUFType("Q8_0", 32, 34),
    10: GGUFType("Q2_K", 256, 84),
    11: GGUFType("Q3_K", 256, 110),
    12: GGUFType("Q4_K", 256, 144),
    13: GGUFType("Q5_K", 256, 176),
    14: GGUFType("Q6_K", 256, 210),
    16: GGUFType("IQ2_XXS", 256, 66),
    17: GGUFType("IQ2_XS", 256, 74),
    18: GGUFType("IQ3_XXS", 256, 98),
    19: GGUFType("IQ1_S", 256, 50),
    20: GGUFType("IQ4_NL", 32, 18),
    21: GGUFType("IQ3_S", 256, 110),
    22: GGUFType("IQ2_S", 256, 82),
    23: GGUFType("IQ4_XS", 256, 136),
    24: GGUFType("I8", 1, 1),
    25: GGUFType("I16", 1, 2),
    26: GGUFType("I32", 1, 4),
    27: GGUFType("I64", 1, 8),
    28: GGUFType("F64", 1, 8),
    29: GGUFType("IQ1_M", 256, 56),
    30: GGUFType("BF16", 1, 2),
    34: GGUFType("TQ1_0", 256, 54),
    35: GGUFType("TQ2_0", 256, 66),
    36: GGUFType("I2_S", 4, 1, tail=32),
    39: GGUFType("MXFP4", 32, 17),
    40: GGUFType("NVFP4", 64, 36),
    41: GGUFType("Q1_0", 128, 18),
    42: GGUFType("Q2_0", 64, 18),
}
Q2_0_FORK = GGUFType("Q2_0_128", 128, 34)  # one fork's blocks under id 42, told by the bytes they take
_REPACKED = "weights in an order for one kind of machine, which ggml has dropped; convert the original model"
REFUSED = {
    9: "Q8_1, a type of activations",
    15: "Q8_K, a type of activations",
    31: _REPACKED,
    32: _REPACKED,
    33: _REPACKED,
    37: "I8_S of bitnet.cpp, a type of activations",
    38: "TL1 of bitnet.cpp, whose order depends on the machine that wrote it; convert the original model to TQ2_0",
    142: "PQ2_0, which needs its activations rotated by a Hadamard transform",
    143: "PTQ1_0, which needs its activations rotated by a Hadamard transform",
}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_DIMS, MAX_NESTING = 4, 4


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor's bytes are; shape as torch has it, rows first; offset from the file's beginning."""

    name: str
    type: GGUFType
    shape: tuple[int, ...]
    offset: int
    bytes: int


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
        """Vocabularies have hundreds of thousands: one plain loop."""
        data, at, end, length_at = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > end or (length := length_at(data, at)[0]) > end - at - 8:
                self.at = at
                self.take(end - at + 1, what)
            # Vocabularies hold bytes that are no UTF-8; nothing is lost this way.
            found.append(str(data[at + 8 : at + 8 + length], "utf-8", "surrogateescape"))
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
    fork = _has_forked_q2_0(table, file.size - begin, alignment)
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, type_id, offset in table:
        where = f"{file.path}: tensor {name!r:.100}"
        if name in tensors:
            raise FormatError(f"{where} stands twice in the table")
        if type_id not in TYPES:
            reason = REFUSED.get(type_id, "a type this version does not know, perhaps of a fork")
            raise FormatError(f"{where} has type id {type_id}: {reason}")
        kind = Q2_0_FORK if type_id == 42 and fork else TYPES[type_id]
        size = _bytes(kind, shape, where)
        if offset % alignment:
            raise FormatError(f"{where} lies at offset {offset}, which is no multiple of the alignment {alignment}")
        if offset + size > file.size - begin:
            raise FormatError(
                f"{where} ({kind.name} {shape}) takes {size} bytes from offset {offset}, but the file has "
                f"{max(0, file.size - begin)} bytes of data; it is truncated or damaged"
            )
        tensors[name] = GGUFTensor(name, kind, shape, begin + offset, size)
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.bytes))
    for one, other in itertools.pairwise(ordered):
        if one.offset + one.bytes > other.offset:
            raise FormatError(
                f"{file.path}: tensors {one.name!r:.100} ({one.type.name} {one.shape}) and {other.name!r:.100} overlap"
            )
    return tensors


def _bytes(kind: GGUFType, shape: tuple[int, ...], where: str) -> int:
    count = math.prod(shape)
    columns = shape[-1] if shape else 1
    if count >= 2**62 or min(shape, default=1) < 1:
        raise FormatError(f"{where} has the impossible shape {shape}")
    if columns % kind.weights and not (kind.tail and count % kind.weights == 0):
        raise FormatError(f"{where} has rows of {columns} weights, but {kind.name} stores {kind.weights} a block")
    return count // kind.weights * kind.bytes + kind.tail


def _has_forked_q2_0(table: list[tuple[str, tuple[int, ...], int, int]], size: int, alignment: int) -> bool:
    """Whether type 42 means blocks of 128: all such tensors fill their places with these, not with blocks of 64."""
    ends = sorted({offset for *_, offset in table} | {size})

    def fills(count: int, place: int, kind: GGUFType) -> bool:
        return count % kind.weights == 0 and 0 <= place - count // kind.weights * kind.bytes < alignment

    places = [
        (math.prod(shape), ends[min(bisect.bisect_right(ends, offset), len(ends) - 1)] - offset)
        for _, shape, type_id, offset in table
        if type_id == 42
    ]
    forked = all(fills(*place, Q2_0_FORK) for place in places)
    return bool(places) and forked and not all(fills(*place, TYPES[42]) for place in places)
