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
        if dtype is None or dtype == tensor.dtype:
            return tensor
        tensor = tensor.to(dtype)
        self.release()
        return tensor

    def release(self) -> None:
        self.raw.file.release(self.raw.offset, self.raw.bytes)
