"""A file in memory without its bytes in memory: mapped, and let go of piece by piece."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch.models.io.errors import refuse_pointer
from bittorch.models.memory import new_tensor

_PAGE = mmap.PAGESIZE
_STEP = 1 << 20  # elements copied before their pages are let go


class MappedFile:
    """Bytes of a file, read where they are needed.

    The mapping is private: who writes into a view changes memory, not the file. Views keep the mapping alive after
    `close`. A file that another program shortens meanwhile ends the process (SIGBUS), as with every mapping.

    Raises:
        FormatError: a pointer of Git LFS.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            # An empty file cannot be mapped.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else None
        self._bytes = np.frombuffer(self._map, dtype=np.uint8) if self._map is not None else np.empty(0, np.uint8)
        refuse_pointer(self._bytes[:64].tobytes(), str(path))

    def view(self, offset: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """``count`` bytes from ``offset`` on, without a copy; callers have checked both against `size`."""
        assert min(offset, count) >= 0
        assert offset + count <= self.size
        return self._bytes[offset : offset + count]

    def release(self, offset: int, count: int) -> None:
        """Says that these bytes, decoded, are not needed soon: the pages no longer count as the process's memory."""
        begin, end = -(-offset // _PAGE) * _PAGE, (offset + count) // _PAGE * _PAGE
        if self._map is not None and end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Drops this object's hold; the last view unmaps the file."""
        self._bytes = np.empty(0, np.uint8)
        self.size = 0
        self._map = None

    def copied(self, view: Tensor, offset: int, dtype: torch.dtype) -> Tensor:
        """A tensor that stands at ``offset`` in memory of its own; never twice in memory, for its pages are let go."""
        out = new_tensor(view.shape, dtype)
        source, target = view.reshape(-1), out.view(-1)
        for begin in range(0, len(source), _STEP):
            part = source[begin : begin + _STEP]
            target[begin : begin + _STEP] = part
            self.release(offset + begin * part.element_size(), part.nbytes)
        return out
