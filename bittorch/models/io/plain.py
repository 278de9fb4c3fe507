"""Directories of floats, as transformers writes them without quantisation."""

from __future__ import annotations

from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, DirectoryFormat, Found


class Plain(DirectoryFormat):
    """See `DirectoryFormat`."""

    def matches(self, directory: Directory) -> bool:
        return directory.quantization is None

    def read(self, directory: Directory) -> Found:
        return Found("safetensors", {name: DenseTensor(name, entry) for name, entry in directory.raw.items()}, None)


FORMAT = Plain()
