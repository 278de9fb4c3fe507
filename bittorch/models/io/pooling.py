"""How a directory says that a text becomes one vector: modules.json of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bittorch.models.io.errors import FormatError
from bittorch.models.io.safetensors_header import parse_json
from bittorch.models.io.tokenizer_files import checkpoint_file

MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}  # of pooling_mode, in newer files
# What stands in modules.json, by the end of its type; the model itself, and the division by the length.
OTHERS = ("Transformer", "Normalize")


def stored_pooling(directory: Path) -> str:
    """`ModelConfig.pooling` of a directory; empty without modules.json.

    Raises:
        FormatError: modules of other types, several poolings, poolings that are not known.
    """
    path = checkpoint_file(directory, "modules.json")
    if path is None:
        return ""
    try:
        modules: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FormatError(f"{path} must list modules, got {modules!r:.100}")
    found = [module for module in modules if str(module.get("type")).endswith("Pooling")]
    for module in modules:
        if module not in found and not str(module.get("type")).endswith(OTHERS):
            raise FormatError(
                f"{path} has a module of type {module.get('type')!r:.100}, which changes vectors of texts and is not "
                f"read; known are {', '.join((*OTHERS, 'Pooling'))}"
            )
    if len(found) > 1:
        raise FormatError(f"{path} has {len(found)} modules of type Pooling; one is read")
    return _of_folder(directory, found[0].get("path"), path) if found else ""


def _of_folder(directory: Path, folder: Any, what: Path) -> str:
    if not isinstance(folder, str) or Path(folder).name != folder or folder in ("", ".", ".."):
        raise FormatError(f"{what} has its Pooling in {folder!r:.100}, which is no folder of the directory")
    path = checkpoint_file(directory, f"{folder}/config.json")
    if path is None:
        raise FormatError(f"{what} has its Pooling in {folder}, which has no config.json")
    values = parse_json(path.read_bytes(), str(path))
    if (mode := values.get("pooling_mode")) is not None:
        if mode not in tuple(NAMES):
            raise FormatError(f"{path}: pooling_mode {mode!r:.40} is not read; known are {', '.join(NAMES)}")
        return NAMES[mode]
    modes = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
    if len(modes) != 1 or modes[0] not in MODES:
        said = ", ".join(modes) or "none"
        raise FormatError(f"{path} must say one of {', '.join(MODES)}, got {said}")
    return MODES[modes[0]]
