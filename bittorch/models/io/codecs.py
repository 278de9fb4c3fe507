"""Ternary layouts of other programs, to and from canonical bytes: pure functions of NumPy arrays.

Canonical: four weights a byte, least significant bits first, 00 = 0, 01 = +1, 10 = -1 (docs/ternary_format.md). The
others store ``weight + 1`` or ``weight + 2`` in two bits, in other orders, or digits of base 3. Decoders return
canonical bytes; encoders take int8 codes. Where the order within a byte is the same, bits are changed in place; else
codes are spread to a byte each and packed by the kernel, which is faster than shuffling bits in NumPy.

Sources: gguf-py 0.19 (TQ1_0, TQ2_0), ggml (Q2_0), microsoft/BitNet (I2_S), transformers 5 (BitNet),
compressed-tensors 0.20 (pack-quantized).
"""

from __future__ import annotations

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


def canonical_from_plus_one(data: Bytes) -> Bytes:
    """Codes ``weight + 1`` become canonical ones in place in their byte. Raises ReservedCode for 11."""
    high = data >> np.uint8(1)
    if (data & high & np.uint8(0x55)).any():
        raise ReservedCode("code 11, which is no trit")
    minus = ~(data | high) & np.uint8(0x55)
    return (high & np.uint8(0x55)) | (minus << np.uint8(1))


def canonical_from_plus_two(data: Bytes) -> Bytes:
    """Codes ``weight + 2`` become canonical ones in place in their byte. Raises ReservedCode for 00."""
    high = data >> np.uint8(1)
    if (~(data | high) & np.uint8(0x55)).any():
        raise ReservedCode("code 00 (-2), which is no trit")
    return (data & high & np.uint8(0x55)) | ((~high & np.uint8(0x55)) << np.uint8(1))


def _spread(data: Bytes, shifts: tuple[int, ...], axis: int) -> Codes:
    """Fields ``weight + 1`` at the given bits of each byte, as codes along a new axis; 11 becomes 2."""
    fields = np.stack([data >> np.uint8(shift) for shift in shifts], axis=axis)
    fields &= np.uint8(3)
    fields -= np.uint8(1)
    return fields.view(np.int8)


def pack(codes: Codes) -> Bytes:
    """``(N, K)`` codes to canonical bytes. Raises ReservedCode for what is no trit."""
    try:
        return ops.ternary_pack(torch.from_numpy(np.ascontiguousarray(codes))).numpy()
    except ValueError:
        raise ReservedCode("code 11, which is no trit") from None


def unpack(packed: Bytes, columns: int) -> Codes:
    """The inverse of `pack`."""
    return ops.ternary_unpack(torch.from_numpy(packed), None, columns, torch.int8).numpy()


def _pack_blocks(codes: Codes, blocks: int) -> Bytes:
    """Codes of blocks of a multiple of 4 weights; in one row, which the kernel takes faster than many short ones."""
    return pack(codes.reshape(1, -1)).reshape(blocks, -1)


def halves(data: Bytes) -> Halves:
    """The last axis, 2 bytes long, as one float16."""
    return np.ascontiguousarray(data).view("<f2")[..., 0]


def decode_tq2_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 66)`` bytes to ``(n, 64)`` canonical bytes and n scales."""
    data = np.ascontiguousarray(blocks[:, :64]).reshape(len(blocks), 2, 32)
    return _pack_blocks(_spread(data, (0, 2, 4, 6), axis=2), len(blocks)), halves(blocks[:, 64:])


def encode_tq2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 256)`` codes and n scales to ``(n, 66)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 2, 4, 32)
    data = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return np.concatenate([data.reshape(len(codes), 64), scale.astype("<f2")[:, None].view(np.uint8)], axis=1)


def decode_q2_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 2 + g / 4)`` bytes to ``(n, g / 4)`` canonical bytes and n scales."""
    return canonical_from_plus_one(np.ascontiguousarray(blocks[:, 2:])), halves(blocks[:, :2])


def encode_q2_0(codes: Codes, scale: Halves) -> Bytes:
    """``(n, 64)`` codes and n scales to ``(n, 18)`` bytes."""
    data = _fields_lsb_first((codes + np.int8(1)).view(np.uint8))
    return np.concatenate([scale.astype("<f2")[:, None].view(np.uint8), data], axis=1)


# Block positions of TQ1_0: (first byte, bytes, digits of base 3 in each).
_TQ1_PARTS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))


def decode_tq1_0(blocks: Bytes) -> tuple[Bytes, Halves]:
    """``(n, 54)`` bytes to ``(n, 64)`` canonical bytes and n scales."""
    out = np.empty((len(blocks), 256), np.int8)
    column = 0
    for first, count, digits in _TQ1_PARTS:
        part = np.ascontiguousarray(blocks[:, first : first + count])
        for _ in range(digits):
            # (3 * byte) >> 8 counts the thirds of 256 that the byte has passed.
            digit = (part >= 86).view(np.int8) + (part >= 171).view(np.int8)
            out[:, column : column + count] = digit - np.int8(1)
            part = part * np.uint8(3)  # modulo 256: the digit shown is gone
            column += count
    return _pack_blocks(out, len(blocks)), halves(blocks[:, 52:])


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
    return _pack_blocks(_spread(blocks, (6, 4, 2, 0), axis=1), len(blocks))


def encode_i2_s(codes: Codes) -> Bytes:
    """``(n, 128)`` codes to ``(n, 32)`` bytes."""
    fields = (codes + np.int8(1)).view(np.uint8).reshape(len(codes), 4, 32)
    return np.asarray(fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3])


def decode_row_fields(data: Bytes, shifts: tuple[int, int, int, int]) -> list[Bytes]:
    """``(r, k)`` bytes that hold four rows each, at the given bits, to four canonical ``(r, ceil(k / 4))`` arrays."""
    return [pack(codes) for codes in _spread(data, shifts, axis=0)]


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


def decode_base3(data: Bytes, columns: int) -> Codes:
    """``(N, ceil(K / 5))`` bytes to ``(N, K)`` int8 codes. Raises ReservedCode beyond 242 and for padding but 0."""
    if (data > 242).any():
        raise ReservedCode(f"byte {int(data.max())}; five trits make 242 at most")
    out = np.empty((*data.shape, 5), np.int8)
    rest = data.astype(np.uint16)
    for digit in range(5):
        third = (rest * np.uint16(171)) >> np.uint16(9)  # rest // 3, exact below 256
        out[:, :, digit] = (rest - third * np.uint16(3)).astype(np.int8) - np.int8(1)
        rest = third
    flat = out.reshape(len(data), -1)
    if flat[:, columns:].any():
        raise ReservedCode(f"trits beyond column {columns}, where rows are padded with 0")
    return flat[:, :columns]


def _fields_lsb_first(fields: Bytes) -> Bytes:
    """Two-bit fields, four a byte along the last axis, the first in the lowest bits."""
    return np.asarray(fields[:, 0::4] | fields[:, 1::4] << 2 | fields[:, 2::4] << 4 | fields[:, 3::4] << 6)
