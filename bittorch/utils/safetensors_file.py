"""One safetensors file, written whole."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bittorch.utils.replacement import replacing


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes or replaces a file, with the permissions of any new one; a failure leaves the old file or the whole new.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(Path(path), directory=False, overwrite=True) as unfinished:
        unfinished.touch()
        ordinary = unfinished.stat().st_mode  # safetensors makes the file anew, readable by its owner alone
        try:
            save_file(tensors, unfinished, metadata=None if metadata is None else {**metadata})
        except SafetensorError as error:
            raise _system_error(error, path) from None
        unfinished.chmod(ordinary)


def _system_error(error: SafetensorError, path: str | os.PathLike[str]) -> OSError:
    """What the system told safetensors, which passes it on as text."""
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(f"{os.fspath(path)} cannot be written: {error}")
    return OSError(int(found[1]), os.strerror(int(found[1])), os.fspath(path))
