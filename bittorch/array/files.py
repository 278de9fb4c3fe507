"""Files of TernaryArrays: NumPy's .npz and safetensors, both with the packed bytes and the shape."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bittorch.array.ternary_array import TernaryArray

_PACKED, _SHAPE = ".trits", ".shape"
_METADATA = "ternary_shapes"


def save(path: str | Path, arrays: Mapping[str, TernaryArray]) -> None:
    """Writes arrays by name: ``.npz``, or ``.safetensors``, by the ending of the path.

    An array ``name`` is ``name.trits``, uint8, with its shape in ``name.shape``, or in the metadata of safetensors.

    Raises:
        ValueError: another ending.
        TypeError: a value that is no TernaryArray.
    """
    for name, array in arrays.items():
        if not isinstance(array, TernaryArray):
            raise TypeError(f"{name} must be a TernaryArray, got {type(array).__name__}")
    if _is_npz(path):
        content = {f"{name}{_PACKED}": a.to_packed().numpy() for name, a in arrays.items()}
        shapes = {f"{name}{_SHAPE}": np.array(a.shape, np.int64) for name, a in arrays.items()}
        np.savez(path, **content, **shapes)  # type: ignore[arg-type]
        return
    from safetensors.torch import save_file

    metadata = {_METADATA: json.dumps({name: a.shape for name, a in arrays.items()})}
    save_file({f"{name}{_PACKED}": a.to_packed().clone() for name, a in arrays.items()}, path, metadata)


def load(path: str | Path) -> dict[str, TernaryArray]:
    """Reads what `save` wrote.

    Raises:
        ValueError: another ending, or a file that `save` does not write: bytes that do not go with a shape, code 11.
        OSError: a file that cannot be read.
    """
    read = _read_npz if _is_npz(path) else _read_safetensors
    name = ""
    try:
        arrays = {}
        for name, (packed, shape) in read(path).items():
            arrays[name] = TernaryArray.from_packed(packed, shape)
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # whatever NumPy, zipfile, safetensors and json raise for bytes that make no sense
        raise ValueError(f"{path}: {name + ': ' if name else ''}{error}") from error
    return arrays


def _read_npz(path: str | Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        with open(path, "rb"):  # names a file that is missing
            raise ValueError("is no .npz file")
    with np.load(path, allow_pickle=False) as file:
        names = [key.removesuffix(_PACKED) for key in file.files if key.endswith(_PACKED)]
        if not names:
            raise ValueError(f"no name{_PACKED}")
        for name in names:
            if name + _SHAPE not in file.files:
                raise ValueError(f"no {name}{_SHAPE}")
        return {name: (file[name + _PACKED], file[name + _SHAPE].tolist()) for name in names}


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        if not shapes or not isinstance(shapes, dict):
            raise ValueError(f"no {_METADATA} in the metadata; {path} holds no TernaryArrays")
        return {name: (file.get_tensor(name + _PACKED), shape) for name, shape in shapes.items()}


def _is_npz(path: str | Path) -> bool:
    ending = Path(path).suffix
    if ending not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {path}")
    return ending == ".npz"
