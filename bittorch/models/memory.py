"""Memory for large tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # of a cache line, as torch aligns


def new_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor in memory that NumPy asks for: in huge pages where the system gives them to who asks.

    They cost a quarter less than small ones when they are first written to. It begins at a multiple of 64 bytes.
    """
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[begin : begin + count]).view(dtype).view(tuple(shape))
