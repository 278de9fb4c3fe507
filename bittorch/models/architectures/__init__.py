"""The architectures that are known: a file for each, and a line here.

A file is imported when an architecture is looked for, and not before.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from bittorch.models.architectures.base import Architecture

REGISTER = (
    "llama",
    "bitnet",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "maple",
    "minicpm",
    "gemma3",
    "qwen3_5",
    "qwen3_5_moe",
)


@functools.cache
def find(name: str) -> Architecture:
    """The architecture of this name. Raises ValueError where there is none."""
    if name not in REGISTER:
        raise ValueError(f"architecture {name!r:.100} is not known; known are {', '.join(REGISTER)}")
    found: Architecture = importlib.import_module(f"{__name__}.{name}").ARCHITECTURE
    return found


def by_hf(values: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a config.json: by its model_type, or where it has none by the class that it names."""
    if (model_type := values.get("model_type")) is not None:
        return next((found for found in map(find, REGISTER) if model_type in found.hf_types), None)
    classes = values.get("architectures")
    return next((found for found in map(find, REGISTER) if classes == [found.hf_class]), None)


def by_gguf(name: object) -> Architecture | None:
    """The architecture of a GGUF file's general.architecture."""
    return next((found for found in map(find, REGISTER) if name in tuple(found.gguf)), None)


def hf_types() -> tuple[str, ...]:
    """Every model_type that is read."""
    return tuple(sorted(name for found in map(find, REGISTER) for name in found.hf_types))


def gguf_names() -> tuple[str, ...]:
    """Every general.architecture that is read."""
    return tuple(name for found in map(find, REGISTER) for name in found.gguf)
