"""The formats of directories that are known: a file for each, and a line here, in the order in which they are tried.

A GGUF file is known by its name in the file system and its first bytes; its tensor types are in `gguf_types`.
"""

from __future__ import annotations

import functools
import importlib

from bittorch.models.io.directory_format import DirectoryFormat

REGISTER = (
    "masters",
    "own",
    "bitnet",
    "compressed_tensors",
    "mlx",
    "plain",
)


@functools.cache
def formats() -> tuple[DirectoryFormat, ...]:
    """All of them, in the order of the register."""
    return tuple(importlib.import_module(f"bittorch.models.io.{name}").FORMAT for name in REGISTER)


def targets() -> dict[str, DirectoryFormat]:
    """What can be written, by name."""
    return {name: format for format in formats() for name in format.targets}
