"""Weights as the kernels read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from bittorch import ops


@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """Ternary weights as the kernels read them.

    ``weight = code * scale``; with ``depth`` D, the sum of D such planes, stacked along the rows.

    Args:
        weight_packed: ``(depth * N, ceil(in_features / 4))`` uint8, canonical.
        scale: float32 multipliers ``[1]``, ``[depth * N]`` or ``[depth * N, G]``, a power of 3 per plane included.
        in_features: columns K of the dense matrix.
        depth: planes.
    """

    weight_packed: Tensor
    scale: Tensor
    in_features: int
    depth: int = 1

    @property
    def out_features(self) -> int:
        """Rows of one plane."""
        return self.weight_packed.shape[0] // self.depth

    def reordered(self, order: Tensor) -> PackedWeight:
        """Of one plane: row i is row ``order[i]`` of this one."""
        scale = self.scale if self.scale.numel() == 1 else self.scale[order]
        return PackedWeight(self.weight_packed[order], scale, self.in_features)


@dataclasses.dataclass(frozen=True)
class BlockWeight:
    """Quantised blocks as GGUF files hold them: what `bittorch.ops.block_unpack` takes.

    Args:
        blocks: ``(N, bytes)`` uint8.
        kind: of the blocks, such as ``Q6_K``.
        in_features: columns K of the dense matrix.
    """

    blocks: Tensor
    kind: str
    in_features: int

    @property
    def out_features(self) -> int:
        return len(self.blocks)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix ``(N, K)``."""
        return ops.block_unpack(self.blocks.cpu(), self.kind, self.in_features, dtype)

    def dense_rows(self, count: int) -> Iterator[Tensor]:
        """The matrix, ``count`` rows at a time; no more become floats at once."""
        for blocks in self.blocks.split(count):
            yield BlockWeight(blocks, self.kind, self.in_features).dense()
