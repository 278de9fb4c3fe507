"""What may be replaced by a checkpoint: another checkpoint, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bittorch.models.io.tokenizer_files import FILES, TEMPLATES

CONFIG = "config.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def check_replaced(path: Path, directory: bool) -> None:
    """Raises FileExistsError where ``path`` holds more than a checkpoint, which would be lost."""
    if not directory:
        return  # who names a file and says overwrite means this file
    if not path.is_dir():
        raise FileExistsError(f"{path} is not a directory, and will not be replaced by one")
    if foreign := sorted(entry.name for entry in path.iterdir() if not _belongs(entry)):
        raise FileExistsError(
            f"{path} will not be replaced: besides a checkpoint it holds {_some(foreign)}; name another directory, or "
            "move these first"
        )
    if not _describes_model(path / CONFIG):
        raise FileExistsError(
            f"{path} will not be replaced: it is no checkpoint's directory, for it has no {CONFIG} with a model_type"
        )


def _belongs(entry: Path) -> bool:
    """Whether a checkpoint has a file of this name."""
    if entry.name == TEMPLATES:
        return entry.is_dir() and all(part.suffix == ".jinja" and part.is_file() for part in entry.iterdir())
    known = entry.name == CONFIG or entry.name in FILES or _WEIGHTS.fullmatch(entry.name)
    return bool(known) and not entry.is_dir()


def _describes_model(path: Path) -> bool:
    try:
        values: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and isinstance(values.get("model_type"), str)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
