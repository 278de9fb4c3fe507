"""Floats as they stand in a safetensors file."""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch.models.io.checkpoint import StoredTensor, TensorInfo
from bittorch.models.io.safetensors_header import RawTensor


class DenseTensor(StoredTensor):
    """A tensor that needs no decoding."""

    def __init__(self, name: str, raw: RawTensor) -> None:
        super().__init__(TensorInfo(name, raw.dtype, raw.shape, raw.bytes))
        self.raw = raw

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self.raw.tensor()
        return tensor if dtype in (None, tensor.dtype) else self.copied(dtype)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self.raw.tensor()
        return self.raw.file.copied(tensor, self.raw.offset, dtype or tensor.dtype)

    def release(self) -> None:
        self.raw.file.release(self.raw.offset, self.raw.bytes)
