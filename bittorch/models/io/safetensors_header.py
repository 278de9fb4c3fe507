"""The header of a safetensors file, checked against the file before anything is allocated or read."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from typing import Any

import torch

from bittorch.models.io.errors import FormatError, refuse_pointer
from bittorch.models.io.mapped_file import MappedFile

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
MAX_DIMENSIONS = 64  # of torch
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library


@dataclasses.dataclass(frozen=True)
class RawTensor:
    """Where a tensor's bytes are: dtype by its name in the file, offset from the file's beginning."""

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    def tensor(self) -> torch.Tensor:
        """The values; a view of the file where it is aligned for the dtype."""
        data = self.file.view(self.offset, self.bytes)
        dtype = DTYPES[self.dtype]
        if self.offset % dtype.itemsize:
            data = data.copy()
        if not self.bytes:
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(data).view(dtype).view(self.shape)


def read_header(file: MappedFile) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FormatError: no JSON, unknown dtypes, duplicate names, sizes or offsets that contradict each other or the file.
    """
    path = file.path
    if file.size < 8:
        raise FormatError(f"{path} has {file.size} bytes, too few for the header of a safetensors file")
    length = int.from_bytes(file.view(0, 8).tobytes(), "little")
    if length > min(MAX_HEADER, file.size - 8):
        raise FormatError(
            f"{path}: its first 8 bytes announce a header of {length} bytes, the file has {file.size}, and headers may "
            f"have {MAX_HEADER}; the file is truncated or no safetensors file"
        )
    header = parse_json(file.view(8, length).tobytes(), f"{path}: the safetensors header")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings")
    begin = 8 + length
    tensors = {name: _entry(file, name, entry, begin) for name, entry in header.items()}
    _check_tiling(file, tensors, begin)
    return tensors, metadata


def _entry(file: MappedFile, name: str, entry: Any, begin: int) -> RawTensor:
    where = f"{file.path}: tensor {name!r:.200}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} must have dtype, shape and data_offsets, got {entry!r:.200}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where} has dtype {dtype!r:.40}; known are {', '.join(DTYPES)}")
    for value in (shape, offsets):
        if isinstance(value, list) and len(value) > MAX_DIMENSIONS:
            raise FormatError(f"{where} has {len(value)} dimensions; tensors have at most {MAX_DIMENSIONS}")
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
            raise FormatError(f"{where}: shape and data_offsets must be lists of sizes, got {value!r:.200}")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= file.size - begin:
        raise FormatError(f"{where} lies at bytes {offsets!r:.80} of {file.size - begin}; the file is truncated")
    count = offsets[1] - offsets[0]
    if math.prod(shape) * DTYPES[dtype].itemsize != count:
        raise FormatError(f"{where} is {dtype} {tuple(shape)!r:.200}, which does not fill its {count} bytes")
    return RawTensor(file, dtype, tuple(shape), begin + offsets[0], count)


def _check_tiling(file: MappedFile, tensors: dict[str, RawTensor], begin: int) -> None:
    """Each byte of the data belongs to one tensor, as the format demands."""
    last = "the header"
    for name, raw in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if raw.offset != begin:
            fault = "overlaps" if raw.offset < begin else "leaves a gap after"
            raise FormatError(
                f"{file.path}: tensor {name!r} at byte {raw.offset} {fault} {last}, which ends at {begin}"
            )
        begin, last = raw.offset + raw.bytes, repr(name)
    if begin != file.size:
        raise FormatError(f"{file.path} has {file.size} bytes, its tensors end at {begin}")


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate names. Raises FormatError, with ``what`` as its subject."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise FormatError(f"{what} names {twice!r:.200} twice")
        return found

    refuse_pointer(text[:64], what)
    try:
        parsed = json.loads(text, object_pairs_hook=once)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise FormatError(f"{what} must be a JSON object, got {type(parsed).__name__}")
    return parsed
