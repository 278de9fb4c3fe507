"""Quantised blocks of GGUF in a mapped file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io.errors import FormatError
from bittorch.models.io.gguf_types import Q2_0_FORK, TYPES
from bittorch.models.io.mapped_file import MappedFile
from bittorch.models.io.ternary_tensor import Floats, chunks
from bittorch.models.packed_weight import BlockWeight


class Kind(NamedTuple):
    """A kind of blocks, as `bittorch.ops.block_unpack` knows it.

    Args:
        weights, bytes: of a block.
        scales: as `SCALES`.
    """

    weights: int
    bytes: int
    scales: tuple[int, ...]


# Where the float16 scales of a block stand; of MXFP4 they are powers of two.
SCALES: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
    "Q2_0": (0,),
    "Q2_0_128": (0,),
}
_TYPES = {kind.name: kind for kind in (*TYPES.values(), Q2_0_FORK)}
KINDS = {name: Kind(_TYPES[name].weights, _TYPES[name].bytes, scales) for name, scales in SCALES.items()}
LARGEST_POWER = 252  # of MXFP4's scales: 12 times the next one is infinite


class Blocks:
    """The blocks of one tensor.

    Args:
        file: where they stand.
        offset: of the first.
        kind: a key of `KINDS`.
        shape: of the tensor; its rows are whole blocks.
        where: names file and tensor in errors.
    """

    def __init__(self, file: MappedFile, offset: int, kind: str, shape: tuple[int, ...], where: str) -> None:
        self.file, self.offset, self.name, self.kind = file, offset, kind, KINDS[kind]
        self.shape, self.where = shape, where
        self.count = int(np.prod(shape, dtype=np.int64)) // self.kind.weights

    def weight(self) -> BlockWeight:
        """A view of a matrix in the file. Raises FormatError, with row and columns, for scales that are not finite."""
        rows, columns = self.shape
        blocks = self._view(0, self.count)
        for begin, end in chunks(self.count, self.kind.weights):
            self._check(blocks[begin:end], begin)
        self.release()
        return BlockWeight(blocks.view(rows, -1), self.name, columns)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The floats. Raises as `weight`."""
        out = torch.empty(self.shape, dtype=dtype).view(-1, self.kind.weights)
        for begin, end in chunks(self.count, self.kind.weights):
            blocks = self._view(begin, end)
            self._check(blocks, begin)
            out[begin:end] = ops.block_unpack(blocks, self.name, self.kind.weights, dtype)
        self.release()
        return out.view(self.shape)

    def release(self) -> None:
        self.file.release(self.offset, self.count * self.kind.bytes)

    def _view(self, begin: int, end: int) -> Tensor:
        data = self.file.view(self.offset + begin * self.kind.bytes, (end - begin) * self.kind.bytes)
        return torch.from_numpy(data).view(-1, self.kind.bytes)

    def _check(self, blocks: Tensor, first: int) -> None:
        """Looks at scales alone: where these are finite, weights are."""
        if self.kind.scales:
            tops = [blocks[:, at + 1] & 0x7C == 0x7C for at in self.kind.scales]
            suspects = torch.stack(tops).any(0)
        else:
            suspects = blocks[:, 0] > LARGEST_POWER
        for block in torch.nonzero(suspects)[:, 0].tolist():
            values = ops.block_unpack(blocks[block : block + 1], self.name, self.kind.weights, torch.float32)
            check_finite(values.numpy(), first + block, self.kind.weights, self.shape[-1], self.where)


def check_finite(values: Floats, first: int, weights: int, columns: int, where: str) -> None:
    """Raises FormatError, with row and columns, where blocks have NaN or Inf.

    Args:
        values: ``(blocks, n)``, of blocks from number ``first`` on.
        first: see ``values``.
        weights: of a block.
        columns: of the tensor.
        where: names file and tensor.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        block, place = (int(found[0]) for found in np.nonzero(bad))
        row, column = divmod((first + block) * weights, columns)
        raise FormatError(
            f"{where} has a scale that is not finite, {values[block, place]}, at row {row}, columns {column} to "
            f"{column + weights - 1}; the file is damaged"
        )
