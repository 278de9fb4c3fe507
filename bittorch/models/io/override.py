"""Fields of `ModelConfig` that a caller gives in the place of what a file says, or does not say."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from bittorch.models import architectures
from bittorch.models.config import ModelConfig

FIXED = {
    "architecture": "the names of a file's tensors are read by it",
    "norms_from_one": "the architecture says it",
    "hadamard": "the file's tensors say it",
}
_WORDS = {"none": None, "true": True, "false": False}
_KINDS = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a list",
    Mapping: "an object",
    types.NoneType: "none",
}


def checked(override: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields and values, of their types: an integer counts as a float, one value as a list of one.

    Raises:
        TypeError: no mapping.
        ValueError: no field of `ModelConfig`, with the nearest; a value of another type. Whether a value is in its
            range, `ModelConfig` checks.
    """
    if override is None:
        return {}
    if not isinstance(override, Mapping):
        raise TypeError(f"override must map fields of ModelConfig to values, got {type(override).__name__}")
    return {key: _typed(key, value, _hint(key)) for key, value in override.items()}


def check_used(given: Mapping[str, Any], architecture: str, what: str) -> None:
    """Refuses fields that change nothing: other architectures' alone, for which no file of this one has an entry.

    Args:
        given: by `checked`.
        architecture: of the checkpoint.
        what: names it.

    Raises:
        ValueError: names field, value, and the architectures that have it.
    """
    for key, value in given.items():
        kinds = [name for name in architectures.REGISTER if key in {e.field for e in architectures.find(name).entries}]
        if kinds and architecture not in kinds and value != getattr(ModelConfig, key):
            raise ValueError(
                f"override of {key}={value!r:.100} changes nothing of {what}: it is of {', '.join(kinds)}, and the "
                f"model is of architecture {architecture}"
            )


def parsed(text: str) -> tuple[str, Any]:
    """The field and the value of ``key=value``: a value is JSON, a word, or words or numbers between commas.

    Raises:
        ValueError: no ``=``; as `checked`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"override must be key=value, got {text!r:.100}")
    return key.strip(), checked({key.strip(): _read(value.strip(), _hint(key.strip()))})[key.strip()]


def _read(text: str, hint: Any) -> Any:
    if hint is str:
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text if _item(hint) is None else [_read(part.strip(), _item(hint)) for part in text.split(",")]


def _hint(key: Any) -> Any:
    hints = typing.get_type_hints(ModelConfig)
    if key in FIXED:
        raise ValueError(f"override of {key} is not possible: {FIXED[key]}")
    if key not in hints:
        known = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in FIXED]
        near = difflib.get_close_matches(str(key), known, 1, 0.5)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(f"override has no field {key!r:.100}{nearest}. Fields: {', '.join(known)}")
    return hints[key]


def _item(hint: Any) -> Any:
    """What a tuple has; None for other types."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _typed(key: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is float and type(value) is int and abs(value) < 2**127:
            return float(value)
        if kind is tuple:
            values = value if isinstance(value, list | tuple) else [value]
            return tuple(_typed(key, item, _item(option)) for item in values)
        if isinstance(value, kind) and (type(value) is bool) == (kind is bool):
            return dict(value) if kind is Mapping else value
    wanted = " or ".join(_KINDS[typing.get_origin(option) or option] for option in options)
    raise ValueError(f"override of {key} must be {wanted}, got {value!r:.100}")
