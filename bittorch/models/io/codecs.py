"""Ternary layouts of other programs, to and from canonical bytes: pure functions of NumPy arrays.

Canonical: four weights per byte, lowest bits first, 00 = 0, 01 = +1, 10 = -1 (docs/reference/ternary_format.md).
The others store ``weight + 1`` or ``weight + 2`` in two bits, in other orders, or digits of base 3. Decoders return
canonical bytes; encoders take int8 codes. Where the order within a byte is the same, bits are changed in place; else
one field of every byte at a time becomes codes, which the kernel packs: faster than shuffling bits in NumPy.

Sources: gguf-py 0.19 (TQ1_0, TQ2_0), ggml (Q2_0), microsoft/BitNet (I2_S), PrismML's fork (PTQ1_0), llama.cpp's pull
request 22836 (STQ1_0), transformers 5 (BitNet), compressed-tensors 0.20 (pack-quantized).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bittorch import ops

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Codes = np.ndarray[Any, np.dtype[np.int8]]
Halves = np.ndarray[Any, np.dtype[np.float16]]

I2S_LAYOUTS = ("128x32", "64x16", "rows4")


class ReservedCode(ValueError):
    """Bits that stand for no trit."""


_KEPT = contextvars.ContextVar("_KEPT", default=False)


@contextlib.contextmanager
def reserved_kept() -> Iterator[None]:
    """Within, decoders write the reserved code 11 for bits that stand for no trit: `ops.ternary_check` finds them."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


def canonical_from_plus_one(data: Bytes) -> Bytes:
    """Codes ``weight + 1`` become canonical ones in place in their byte. Raises ReservedCode for 11."""
    plus = data >> np.uint8(1)
    plus &= np.uint8(0x55)
    minus = data & plus
    reserved = minus << np.uint8(1) if minus.any() else None
    if reserved is not None and not _KEPT.get():
        raise ReservedCode("code 11, which is no trit")
    np.bitwise_or(data, plus, out=minus)
    np.invert(minus, out=minus)
    minus &= np.uint8(0x55)
    minus <<= np.uint8(1)
    minus |= plus
    return minus if reserved is None else minus | reserved


def canonical_from_plus_two(data: Bytes) -> Bytes:
    """Codes ``weight + 2`` become canonical ones in place in their byte. Raises ReservedCode for 00."""
    high = data >> np.uint8(1)
    zero = data | high
    np.invert(zero, out=zero)
    zero &= np.uint8(0x55)
    reserved = zero.copy() if zero.any() else None
    if reserved is not None and not _KEPT.get():
        raise ReservedCode("code 00 (-2), which is no trit")
    plus = np.bitwise_and(data, high, out=zero)
    plus &= np.uint8(0x55)
    np.invert(high, out=high)
    high &= np.uint8(0x55)
    high <<= np.uint8(1)
    high |= plus
    return high if reserved is None else high | reserved


def _fields(data: Bytes, shifts: Sequence[int]) -> Iterator[Codes]:
    """For each shift the fields ``weight + 1`` at these bits of every byte, as codes in one array; 11 becomes 2."""
    fields = np.empty_like(data)
    for shift in shifts:
        np.right_shift(data, np.uint8(shift), out=fields)
        np.bitwise_and(fields, np.uint8(3), out=fields)
        np.subtract(fields, np.uint8(1), out=fields)
        yield fields.view(np.int8)


def pack(codes: Codes) -> Bytes:
    """``(N, K)`` codes to canonical bytes. Raises ReservedCode for what is no trit."""
    try:
        return ops.ternary_pack(torch.from_numpy(np.ascontiguousarray(codes)), check=not _KEPT.get()).numpy()
    except ValueError:
        raise ReservedCode("code 11, which is no trit") from None


def unpack(packed: Bytes, columns: int) -> Codes:
    """The inverse of `pack`."""
    return ops.ternary_unpack(torch.from_numpy(packed), None, columns, torch.int8).numpy()


def _pack_runs(codes: Codes, run: int) -> np.ndarray[Any, Any]:
    """Codes in runs of a multiple of 4, each run's bytes as one item: such items move faster than rows of bytes."""
    # One long row, which the kernel takes faster than many short ones.
    return pack(codes.reshape(1, -1)).reshape(-1, run // 4).view(f"V{run // 4}")[:, 0]


def _pack_fields(data: Bytes, run: int, shifts: Sequence[int]) -> Bytes:
    """Runs of ``run`` bytes whose fields at each shift are ``run`` weights in order, to as many canonical bytes."""
    out = np.empty((data.size // run, len(shifts)), f"V{run // 4}")
    for i, codes in enumerate(_fields(data, shifts)):
        out[:, i] = _pack_runs(codes, run)
    return out.view(np.uint8)


def _records(blocks: Bytes, *parts: tuple[str, str]) -> np.ndarray[Any, Any]:
    """``(n, b)`` bytes as n records of these parts."""
    return np.ascontiguousarray(blocks).view(np.dtype(list(parts)))[:, 0]


def _bytes_of(part: np.ndarray[Any, Any]) -> Bytes:
    """One part of all records, in a row."""
    return np.ascontiguousarray(part).view(np.uint8)


def halves(data: Bytes) -> Halves:
    """The last axis, 2 bytes long, as one float16."""
    return np.ascontiguousarray(data).view("<f2")[..., 0]


def decode_tq2_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 66)`` bytes to ``(n, 64)`` canonical bytes and n scales."""
    records = _records(blocks, ("fields", "V64"), ("scale", "<f2"))
    return _pack_fields(_bytes_of(records["fields"]), 32, (0, 2, 4, 6)).reshape(-1, 64), records["scale"]


def encode_tq2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 256)`` codes and n scales to ``(n, 66)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 2, 4, 32)
    data = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return np.concatenate([data.reshape(len(codes), 64), scale.astype("<f2")[:, None].view(np.uint8)], axis=1)


def decode_q2_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 2 + g / 4)`` bytes to ``(n, g / 4)`` canonical bytes and n scales."""
    size = blocks.shape[1] - 2
    records = _records(blocks, ("scale", "<f2"), ("fields", f"V{size}"))
    return canonical_from_plus_one(_bytes_of(records["fields"])).reshape(-1, size), records["scale"]


def encode_q2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 64)`` codes and n scales to ``(n, 18)`` bytes."""
    data = _fields_lsb_first((codes + np.int8(1)).view(np.uint8))
    return np.concatenate([scale.astype("<f2")[:, None].view(np.uint8), data], axis=1)


# Block positions of TQ1_0: (first byte, bytes, digits of base 3 in each).
_TQ1_PARTS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))


def decode_tq1_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 54)`` bytes to ``(n, 64)`` canonical bytes and n scales. Raises ReservedCode for bytes of no five trits."""
    return _from_base3_blocks(blocks, 256, "tq1_0")


def decode_ptq1_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 28)`` bytes, TQ1_0 in half its size, to ``(n, 32)`` canonical bytes and n scales. Raises as it does."""
    return _from_base3_blocks(blocks, 128, "ptq1_0")


def _from_base3_blocks(blocks: Bytes, weights: int, layout: str) -> tuple[Bytes, Halves]:
    packed = ops.ternary_from_base3(torch.from_numpy(blocks), weights, layout)
    if _refuses(packed.view(1, -1), 4 * packed.numel()):  # one long row is checked faster than many short ones
        # A byte is v * 256 / 243 rounded up; 243 * byte modulo 256 is then the rounding, which is less than 243.
        digits = blocks[:, :-2]
        invalid = digits * np.uint8(243) > np.uint8(242)
        raise ReservedCode(f"byte {int(digits[invalid][0])}, which no five trits make")
    return packed.numpy(), halves(blocks[:, -2:])


def _refuses(packed: torch.Tensor, columns: int) -> bool:
    """Whether the bytes are not canonical, and who calls does not want them all the same."""
    return not _KEPT.get() and bool((ops.ternary_check(packed, columns) >= 0).any())


@functools.cache
def _quads_with_a_zero() -> Codes:
    """``(32, 4)``: by ``sign << 4 | z << 2 | m`` four codes, 0 at z, else 1; m negates two of them, sign all."""
    index = np.arange(32)
    codes = np.ones((32, 4), np.int8)
    codes[index, index >> 2 & 3] = 0
    places = np.array([[i for i in range(4) if i != zero] for zero in range(4)])[index >> 2 & 3]
    for bit in (0, 1):
        codes[index, places[:, bit + 1]] *= (1 - 2 * (index >> bit & 1)).astype(np.int8)
    codes[16:] *= np.int8(-1)
    return codes


def decode_stq1_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 42)`` bytes, four weights with one zero in five bits, to ``(n, 64)`` canonical bytes and n scales."""
    records = _records(blocks, ("low", "V32"), ("sign", "V8"), ("scale", "<f2"))
    low, sign = _bytes_of(records["low"]).reshape(-1, 32), _bytes_of(records["sign"]).reshape(-1, 8)
    index = np.stack([low & np.uint8(15), low >> np.uint8(4)], axis=2).reshape(-1, 64)
    index |= np.unpackbits(sign, axis=1, bitorder="little") << np.uint8(4)
    # The four weights of a group stand 16 apart.
    codes = _quads_with_a_zero()[index].reshape(-1, 4, 16, 4).transpose(0, 1, 3, 2)
    return pack(codes.reshape(1, -1)).reshape(-1, 64), records["scale"]


def encode_tq1_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 256)`` codes and n scales to ``(n, 54)`` bytes."""
    out = np.empty((len(codes), 54), np.uint8)
    column = 0
    for first, count, digits in _TQ1_PARTS:
        value = np.zeros((len(codes), count), np.uint16)
        for _ in range(digits):
            value = value * np.uint16(3) + (codes[:, column : column + count] + 1).astype(np.uint16)
            column += count
        value *= np.uint16(3 ** (5 - digits))
        # Rounded up, so that each digit shows as the integer part of its third.
        out[:, first : first + count] = (value * np.uint16(256) + np.uint16(242)) // np.uint16(243)
    out[:, 52:] = scale.astype("<f2")[:, None].view(np.uint8)
    return out


def decode_i2_s(blocks: Bytes) -> Bytes:
    """Blocks of ``(n, b)`` bytes, of 4 b weights each, first quarter in the top bits, to ``(n, b)`` canonical bytes."""
    return _pack_fields(np.ascontiguousarray(blocks).reshape(-1), blocks.shape[1], (6, 4, 2, 0))


def encode_i2_s(codes: Codes) -> Bytes:
    """``(n, 128)`` codes to ``(n, 32)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 4, 32)
    return np.asarray(fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3])


def decode_row_fields(data: Bytes, shifts: tuple[int, int, int, int]) -> list[Bytes]:
    """``(r, k)`` bytes that hold four rows each, at the given bits, to four canonical ``(r, ceil(k / 4))`` arrays."""
    return [pack(codes) for codes in _fields(data, shifts)]


def encode_bitnet(codes: Codes) -> Bytes:
    """``(N, K)`` codes, N a multiple of 4, to ``(N / 4, K)`` bytes: quarter i of the rows at bits 2 i."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(4, len(codes) // 4, codes.shape[1])
    return np.asarray(fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6)


def decode_int32(words: Bytes, columns: int) -> Bytes:
    """``(N, 4 * ceil(K / 16))`` bytes of little-endian int32 to ``(N, ceil(K / 4))`` canonical bytes."""
    used, rest = words[:, : -(-columns // 4)], columns % 4
    if rest:  # what pads a row is 0 there, which is no code
        used = used.copy()
        used[:, -1] = (used[:, -1] & np.uint8((1 << 2 * rest) - 1)) | np.uint8(0xAA << 2 * rest & 0xFF)
    return canonical_from_plus_two(used)


def encode_int32(codes: Codes) -> np.ndarray[Any, Any]:
    """``(N, K)`` codes to ``(N, ceil(K / 16))`` int32, ``weight + 2`` least significant bits first, padded with 0."""
    fields = np.zeros((len(codes), -(-codes.shape[1] // 16) * 16), np.uint8)
    fields[:, : codes.shape[1]] = (codes + np.int8(2)).view(np.uint8)
    return _fields_lsb_first(fields).view("<i4")


def encode_base3(codes: Codes) -> Bytes:
    """``(N, K)`` codes to ``(N, ceil(K / 5))`` bytes: the sum of ``(weight_i + 1) * 3^i``, padded with zeros."""
    digits = np.ones((len(codes), -(-codes.shape[1] // 5) * 5), np.uint8)
    digits[:, : codes.shape[1]] = (codes + np.int8(1)).view(np.uint8)
    value = digits[:, 4::5].copy()
    for digit in (3, 2, 1, 0):
        value *= np.uint8(3)
        value += digits[:, digit::5]
    return value


def decode_base3(data: Bytes, columns: int) -> Bytes:
    """``(N, ceil(K / 5))`` bytes to ``(N, ceil(K / 4))`` canonical ones.

    Raises ReservedCode beyond 242 and for padding but 0.
    """
    packed = ops.ternary_from_base3(torch.from_numpy(data), columns)
    if _refuses(packed, columns) and data.max() > 242:
        raise ReservedCode(f"byte {int(data.max())}, which no five trits make (242 at most)")
    used = columns % 5
    # What pads a row's last byte is 0 too, and five times 0 is 121.
    if used and not _KEPT.get() and (data[:, -1] // np.uint8(3**used) != 121 // 3**used).any():
        raise ReservedCode(f"trits beyond column {columns}, where rows are padded with 0")
    return packed.numpy()


def _fields_lsb_first(fields: Bytes) -> Bytes:
    """Two-bit fields, four per byte along the last axis, the first in the lowest bits."""
    return np.asarray(fields[:, 0::4] | fields[:, 1::4] << 2 | fields[:, 2::4] << 4 | fields[:, 3::4] << 6)
