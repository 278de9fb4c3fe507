"""Block types of GGUF that stand for floats, in NumPy: blocks of bytes to float32. The definition of `block_unpack`.

Source: the layouts of ggml, as gguf-py 0.19 decodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
# The 16 levels of IQ4, which are denser near zero; and twice the values of a float of one sign, two exponent bits and
# one fraction bit.
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte of each block, ``(n, 1)``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Floats:
    """Low nibbles of all bytes, then high ones."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=1).astype(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _fifth_bits(data: Bytes) -> Floats:
    """The top bits of 32 values of five bits, ``(n, 32)``: bit i of four bytes belongs to value i."""
    return np.unpackbits(data, axis=1, bitorder="little").astype(np.float32) * np.float32(16)


def _q5_0(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6])
    return (values - np.float32(16)) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Floats:
    values = _nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])
    return values * _half(blocks, 0) + _half(blocks, 2)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _levels(IQ4, blocks[:, 2:]) * _half(blocks, 0)


def _iq4_xs(blocks: Bytes) -> Floats:
    """Eight groups of 32; the scale of a group has six bits, the low four in nibbles, the high two together."""
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    high = (blocks[:, 2:4].view("<u2") >> shifts) & 3
    low = blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    scale = (low.reshape(-1, 8) | high << 4).astype(np.float32) - np.float32(32)
    values = _levels(IQ4, blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    return (values * (scale * _half(blocks, 0))[:, :, None]).reshape(len(blocks), 256)


def _mxfp4(blocks: Bytes) -> Floats:
    """A power of two, ``2 ** (byte - 128)``, for 32 floats of four bits, which are stored doubled."""
    return np.ldexp(_levels(E2M1, blocks[:, 1:]), blocks[:, :1].astype(np.int32) - 128)


def _levels(table: Floats, data: Bytes) -> Floats:
    """Entries of a table of 16 by low nibbles of all bytes, then by high ones."""
    return table[np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=1)]


def _q2_0(blocks: Bytes) -> Floats:
    return (_pairs(blocks[:, 2:], 1) - np.float32(1)) * _half(blocks, 0)


def _pairs(data: Bytes, stride: int) -> Floats:
    """Fields of two bits: the lowest of ``stride`` bytes, then their next ones, then those of the following bytes."""
    fields = data.reshape(len(data), -1, 1, stride) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    return fields.reshape(len(data), -1).astype(np.float32)


def _q2_k(blocks: Bytes) -> Floats:
    """16 groups of 16, each with a scale and a minimum of four bits in one byte."""
    scale = (blocks[:, :16] & 15).astype(np.float32) * _half(blocks, 80)
    least = (blocks[:, :16] >> 4).astype(np.float32) * _half(blocks, 82)
    values = _pairs(blocks[:, 16:80], 32).reshape(-1, 16, 16)
    return (values * scale[:, :, None] - least[:, :, None]).reshape(len(blocks), 256)


def _q3_k(blocks: Bytes) -> Floats:
    """16 groups of 16: two low bits as in Q2_K; a clear bit of the mask subtracts 4; scales of six bits."""
    clear = np.stack([~blocks[:, :32] >> np.uint8(bit) & np.uint8(1) for bit in range(8)], axis=1)
    values = _pairs(blocks[:, 32:96], 32) - clear.reshape(len(blocks), 256) * np.float32(4)
    low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
    high = blocks[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    scale = (low | high.reshape(-1, 16) << 4).astype(np.float32) - np.float32(32)
    scale = (scale * _half(blocks, 108))[:, :, None]
    return (values.reshape(-1, 16, 16) * scale).reshape(len(blocks), 256)


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled_groups(blocks, _nibbles(blocks[:, 16:].reshape(-1, 32)))


def _q5_k(blocks: Bytes) -> Floats:
    """Bit g of the byte i of the mask is the top bit of value i of group g."""
    top = np.stack([blocks[:, 16:48] >> np.uint8(bit) & np.uint8(1) for bit in range(8)], axis=1)
    low = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    return _scaled_groups(blocks, low + top.astype(np.float32) * np.float32(16))


def _scaled_groups(blocks: Bytes, values: Floats) -> Floats:
    """Eight groups of 32 with 6-bit scales and minima; those of the last four have their top bits with the first."""
    low, high, rest = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1).astype(np.float32) * _half(blocks, 0)
    least = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1).astype(np.float32) * _half(blocks, 2)
    values = values.reshape(len(blocks), 8, 32)
    return (values * scale[:, :, None] - least[:, :, None]).reshape(len(blocks), 256)


def _q6_k(blocks: Bytes) -> Floats:
    """Two halves of 128: four low bits in nibbles of 64 bytes, two high bits in 32 bytes; a scale for 16."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = ((low | high << 4).astype(np.float32) - 32).reshape(len(blocks), 16, 16)
    scale = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (values * scale[:, :, None]).reshape(len(blocks), 256)


DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "Q2_0": _q2_0,
    "Q2_0_128": _q2_0,
}
# Weights of a block.
WEIGHTS = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"), 32),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), 256),
    "Q2_0": 64,
    "Q2_0_128": 128,
}
