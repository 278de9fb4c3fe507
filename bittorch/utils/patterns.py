"""Name patterns, such as ``"*.mlp.*"``: which layers they name, and what was meant where they name none."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")


def as_patterns(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def matches(name: str, pattern: str) -> bool:
    """Whether the pattern names the layer; ``*.`` at its begin may stand for nothing: ``*.mlp.*`` takes ``mlp.up``."""
    return fnmatch.fnmatchcase(name, pattern) or (
        pattern.startswith("*.") and fnmatch.fnmatchcase(name, pattern.removeprefix("*."))
    )


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns)


def first_match(name: str, values: Mapping[str, _Value]) -> _Value | None:
    """The value of the first pattern that a layer's name matches."""
    return next((value for pattern, value in values.items() if matches(name, pattern)), None)


def _near(pattern: str, names: list[str]) -> str:
    if any(matches(name, f"{pattern}.*") for name in names):
        return f"{pattern!r} is a module around layers, {f'{pattern}.*'!r} takes what is in it"
    if any(matches(name, f"*.{pattern}") for name in names):
        return f"{f'*.{pattern}'!r} takes layers of that name anywhere"
    near = difflib.get_close_matches(pattern.strip("*."), names, n=3, cutoff=0.3) or names[:3]
    return f"there is {', '.join(near) or 'none'}"


def warn_of_unmatched(patterns: list[str], names: list[str], what: str, kind: str, stacklevel: int) -> None:
    """Warns of patterns of the argument ``what`` that no layer of a kind bears, and says what comes near."""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            warnings.warn(
                f"{what} {pattern!r} matches no layer {kind}; {_near(pattern, names)}",
                stacklevel=stacklevel,
            )
