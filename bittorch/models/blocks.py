"""Embeddings and heads that stay in the quantised blocks of a file: decoded where they are looked up or multiplied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.models.packed_weight import BlockWeight


class _Blocks(nn.Module):
    """One buffer, ``blocks``; on a CPU, which alone has kernels for it."""

    blocks: Tensor

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.kind, self.in_features, self.out_features = weight.kind, weight.in_features, weight.out_features
        self.register_buffer("blocks", weight.blocks)

    @property
    def weight(self) -> BlockWeight:
        return BlockWeight(self.blocks, self.kind, self.in_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kind={self.kind}"


class BlockLinear(_Blocks):
    """``x @ W^T``, the weight being decoded some columns at a time: `bittorch.ops.block_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.block_linear(x, self.blocks, self.kind)


class BlockEmbedding(_Blocks):
    """Rows by their numbers, of ``dtype``; the others are not decoded."""

    def __init__(self, weight: BlockWeight, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype

    def tied_head(self) -> BlockLinear:
        """The product with the same rows; one set of buffers, as of `bittorch.nn.TernaryEmbeddingInference`."""
        head = BlockLinear(self.weight)
        head.__dict__["_buffers"] = self._buffers
        return head.train(self.training)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = ops.block_unpack(self.blocks[tokens.flatten()], self.kind, self.in_features, self.dtype)
        return rows.unflatten(0, tokens.shape)
