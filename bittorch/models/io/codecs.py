"""Ternary layouts of other programs, to and from canonical bytes: pure functions of NumPy arrays.

Canonical: four weights per byte, lowest bits first, 00 = 0, 01 = +1, 10 = -1 (docs/reference/ternary_format.md).
The others store ``weight + 1`` or ``weight + 2`` in two bits, in other orders, or digits of base 3. Decoders return
canonical bytes, or write them where the caller says; encoders take int8 codes. Where the order within a byte is the
same, bits are changed in place; ops decode other orders.

Sources: gguf-py 0.19 (TQ1_0, TQ2_0), ggml (Q2_0), microsoft/BitNet (I2_S), PrismML's fork (PTQ1_0), llama.cpp's pull
request 22836 (STQ1_0), transformers 5 (BitNet), compressed-tensors 0.20 (pack-quantized).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
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


def pack(codes: Codes) -> Bytes:
    """``(N, K)`` codes to canonical bytes. Raises ReservedCode for what is no trit."""
    try:
        return ops.ternary_pack(torch.from_numpy(np.ascontiguousarray(codes)), check=not _KEPT.get()).numpy()
    except ValueError:
        raise ReservedCode("code 11, which is no trit") from None


def unpack(packed: Bytes, columns: int) -> Codes:
    """The inverse of `pack`."""
    return ops.ternary_unpack(torch.from_numpy(packed), None, columns, torch.int8).numpy()


def decode_fields(data: Bytes, columns: int, layout: str, out: Bytes) -> None:
    """Rows of data to canonical rows, as `bittorch.ops.ternary_from_fields`. Raises ReservedCode for the field 11."""
    found = ops.ternary_from_fields(torch.from_numpy(data), columns, layout, torch.from_numpy(out))
    if not _KEPT.get() and bool(found.any()):
        raise ReservedCode("code 11, which is no trit")


def _records(blocks: Bytes, *parts: tuple[str, str]) -> np.ndarray[Any, Any]:
    """``(n, b)`` bytes as n records of these parts."""
    return np.ascontiguousarray(blocks).view(np.dtype(list(parts)))[:, 0]


def _bytes_of(part: np.ndarray[Any, Any]) -> Bytes:
    """One part of all records, in a row."""
    return np.ascontiguousarray(part).view(np.uint8)


def halves(data: Bytes) -> Halves:
    """The last axis, 2 bytes long, as one float16."""
    return np.ascontiguousarray(data).view("<f2")[..., 0]


def _room(blocks: Bytes, weights: int, out: Bytes | None) -> Bytes:
    """Where the canonical bytes of blocks of so many weights go."""
    return np.empty((len(blocks), weights // 4), np.uint8) if out is None else out


def decode_tq2_0(blocks: Bytes, out: Bytes | None = None) -> tuple[Bytes, Halves]:
    """``(n, 66)`` bytes to ``(n, 64)`` canonical bytes and n scales."""
    out = _room(blocks, 256, out)
    decode_fields(blocks, 256, "tq2_0", out)
    return out, halves(blocks[:, 64:])


def encode_tq2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 256)`` codes and n scales to ``(n, 66)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 2, 4, 32)
    data = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return np.concatenate([data.reshape(len(codes), 64), scale.astype("<f2")[:, None].view(np.uint8)], axis=1)


def decode_q2_0(blocks: Bytes, out: Bytes | None = None) -> tuple[Bytes, Halves]:
    """``(n, 2 + g / 4)`` bytes to ``(n, g / 4)`` canonical bytes and n scales."""
    size = blocks.shape[1] - 2
    records = _records(blocks, ("scale", "<f2"), ("fields", f"V{size}"))
    out = _room(blocks, 4 * size, out)
    out[:] = canonical_from_plus_one(_bytes_of(records["fields"])).reshape(-1, size)
    return out, records["scale"]


def encode_q2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 64)`` codes and n scales to ``(n, 18)`` bytes."""
    data = _fields_lsb_first((codes + np.int8(1)).view(np.uint8))
    return np.concatenate([scale.astype("<f2")[:, None].view(np.uint8), data], axis=1)


# Block positions of TQ1_0: (first byte, bytes, digits of base 3 in each).
_TQ1_PARTS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))


def decode_tq1_0(blocks: Bytes, out: Bytes | None = None) -> tuple[Bytes, Halves]:
    """``(n, 54)`` bytes to ``(n, 64)`` canonical bytes and n scales. Raises ReservedCode for bytes of no five trits."""
    return _from_base3_blocks(blocks, 256, "tq1_0", out)


def decode_ptq1_0(blocks: Bytes, out: Bytes | None = None) -> tuple[Bytes, Halves]:
    """``(n, 28)`` bytes, TQ1_0 in half its size, to ``(n, 32)`` canonical bytes and n scales. Raises as it does."""
    return _from_base3_blocks(blocks, 128, "ptq1_0", out)


def _from_base3_blocks(blocks: Bytes, weights: int, layout: str, out: Bytes | None) -> tuple[Bytes, Halves]:
    out = _room(blocks, weights, out)
    packed = ops.ternary_from_base3(torch.from_numpy(blocks), weights, layout, out=torch.from_numpy(out))
    if _refuses(packed.view(1, -1), 4 * packed.numel()):  # one long row is checked faster than many short ones
        # A byte is v * 256 / 243 rounded up; 243 * byte modulo 256 is then the rounding, which is less than 243.
        digits = blocks[:, :-2]
        invalid = digits * np.uint8(243) > np.uint8(242)
        raise ReservedCode(f"byte {int(digits[invalid][0])}, which no five trits make")
    return out, halves(blocks[:, -2:])


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


def decode_stq1_0(blocks: Bytes, out: Bytes | None = None) -> tuple[Bytes, Halves]:
    """``(n, 42)`` bytes, four weights with one zero in five bits, to ``(n, 64)`` canonical bytes and n scales."""
    records = _records(blocks, ("low", "V32"), ("sign", "V8"), ("scale", "<f2"))
    low, sign = _bytes_of(records["low"]).reshape(-1, 32), _bytes_of(records["sign"]).reshape(-1, 8)
    index = np.stack([low & np.uint8(15), low >> np.uint8(4)], axis=2).reshape(-1, 64)
    index |= np.unpackbits(sign, axis=1, bitorder="little") << np.uint8(4)
    # The four weights of a group stand 16 apart.
    codes = _quads_with_a_zero()[index].reshape(-1, 4, 16, 4).transpose(0, 1, 3, 2)
    out = _room(blocks, 256, out)
    out[:] = pack(codes.reshape(1, -1)).reshape(-1, 64)
    return out, records["scale"]


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


def encode_i2_s(codes: Codes) -> Bytes:
    """``(n, 128)`` codes to ``(n, 32)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 4, 32)
    return np.asarray(fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3])


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


def decode_base3(data: Bytes, columns: int, out: Bytes | None = None) -> Bytes:
    """``(N, ceil(K / 5))`` bytes to ``(N, ceil(K / 4))`` canonical ones.

    Raises ReservedCode beyond 242 and for padding but 0.
    """
    out = np.empty((len(data), -(-columns // 4)), np.uint8) if out is None else out
    packed = ops.ternary_from_base3(torch.from_numpy(data), columns, out=torch.from_numpy(out))
    if _refuses(packed, columns) and data.max() > 242:
        raise ReservedCode(f"byte {int(data.max())}, which no five trits make (242 at most)")
    used = columns % 5
    # What pads a row's last byte is 0 too, and five times 0 is 121.
    if used and not _KEPT.get() and (data[:, -1] // np.uint8(3**used) != 121 // 3**used).any():
        raise ReservedCode(f"trits beyond column {columns}, where rows are padded with 0")
    return out


def _fields_lsb_first(fields: Bytes) -> Bytes:
    """Two-bit fields, four per byte along the last axis, the first in the lowest bits."""
    return np.asarray(fields[:, 0::4] | fields[:, 1::4] << 2 | fields[:, 2::4] << 4 | fields[:, 3::4] << 6)
