"""Block types of GGUF that stand for floats: blocks of bytes to float32.

Source: the layouts of ggml, as gguf-py 0.19 decodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bittorch.models.io.codecs import Bytes, halves

Floats = np.ndarray[Any, np.dtype[np.float32]]


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at a byte of each block, ``(n, 1)``."""
    return halves(blocks[:, at : at + 2]).astype(np.float32)[:, None]


def _nibbles(data: Bytes) -> Floats:
    """Low nibbles of all bytes, then high ones."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=1).astype(np.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]) - np.float32(8)) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _q2_0(blocks: Bytes) -> Floats:
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    fields = (blocks[:, 2:, None] >> shifts) & np.uint8(3)
    return (fields.reshape(len(blocks), -1).astype(np.float32) - np.float32(1)) * _half(blocks, 0)


def _q4_k(blocks: Bytes) -> Floats:
    """Eight groups of 32 with 6-bit scales and minima; those of the last four have their top bits with the first."""
    low, high, rest = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1).astype(np.float32) * _half(blocks, 0)
    least = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1).astype(np.float32) * _half(blocks, 2)
    data = blocks[:, 16:].reshape(-1, 32)
    values = _nibbles(data).reshape(len(blocks), 8, 32)
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
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
    "Q2_0": _q2_0,
    "Q2_0_128": _q2_0,
}
