"""Packed rows as tensors of ONNX: blocks of MatMulNBits, and integers of as few bits as hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from bittorch import ops

Ints = np.ndarray  # int8
Floats = np.ndarray  # float32

BLOCKS = (16, 32, 64, 128, 256)
"""Columns that share a scale in MatMulNBits."""


@dataclass(frozen=True)
class Weight:
    """Codes and scales of the packed rows of one node.

    Attributes:
        name: of the layer.
        codes: int8 ``(rows, columns)`` of -1, 0 and +1.
        scales: float32 ``(rows, groups)``.
    """

    name: str
    codes: Ints
    scales: Floats

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    @property
    def groups(self) -> int:
        return int(self.scales.shape[1])

    @property
    def group_size(self) -> int:
        return self.columns // self.groups


def weight_of(name: str, packed: np.ndarray, scale: np.ndarray, columns: int, rows: int | None = None) -> Weight:
    """Unpacks codes. ``rows`` that have scales, if not all."""
    codes = ops.ternary_unpack(torch.from_numpy(packed.copy()), None, columns, torch.int8).numpy()
    return Weight(name, codes, scales_of(scale, len(codes) if rows is None else rows))


def scales_of(scale: np.ndarray, rows: int) -> Floats:
    """float32 ``(rows, groups)``: one scale for all rows, or one a row, becomes a column."""
    scales = scale.reshape(len(scale), -1).astype(np.float32)
    if len(scales) == 1 != rows:
        scales = np.repeat(scales, rows, axis=0)
    return np.ascontiguousarray(scales)


def blocks(weight: Weight, block: int) -> tuple[np.ndarray, Floats]:
    """B and scales of MatMulNBits: uint8 ``(rows, blocks, block / 4)`` of code + 2, the first code in the lowest bits,
    and float32 ``(rows, blocks)``. The last block is padded with code 0."""
    count = -(-weight.columns // block)
    padded = np.full((weight.rows, count * block), 2, np.uint8)
    padded[:, : weight.columns] = weight.codes + 2
    packed = _packed(padded.reshape(weight.rows, count, block), 2)
    return packed, np.repeat(weight.scales, count // weight.groups, axis=1)


def block_size(weight: Weight, wanted: int | None) -> int:
    """The block of MatMulNBits for a weight; ValueError where there is none."""
    if weight.groups == 1:
        return wanted or next((each for each in BLOCKS[:4] if each >= weight.columns), 128)
    if wanted and weight.group_size % wanted:
        raise ValueError(
            f"{weight.name} has a scale for {weight.group_size} columns, which block_size={wanted} does not divide; "
            "leave block_size out, or take a smaller one"
        )
    fitting = [each for each in BLOCKS[:4] if weight.group_size % each == 0]
    if not fitting:
        raise ValueError(
            f"{weight.name} has a scale for {weight.group_size} columns, and blocks of MatMulNBits are multiples of "
            '16; take format="qdq"'
        )
    return wanted or fitting[-1]


def smallest(values: Ints) -> ir.TensorProtocol:
    """Integers in 2, 4 or 8 bits each, whichever holds them."""
    most = int(np.abs(values).max(initial=0))
    if most > 7:
        return ir.Tensor(np.ascontiguousarray(values))
    bits, kind = (2, ir.DataType.INT2) if most <= 1 else (4, ir.DataType.INT4)
    flat = values.reshape(-1).view(np.uint8) & (2**bits - 1)
    packed = _packed(np.pad(flat, (0, -len(flat) % (8 // bits))), bits)
    return ir.PackedTensor(packed, kind, shape=values.shape)


def _packed(fields: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of uint8 fields of so many bits along the last axis, the first in the lowest bits."""
    parts = fields.reshape(*fields.shape[:-1], -1, 8 // bits)
    packed = parts[..., 0].copy()
    for i in range(1, 8 // bits):
        packed |= parts[..., i] << (bits * i)
    return packed
