"""Weights of experts: a matrix for each under canonical names, one tensor of three dimensions for all in some files.

A stack is a matrix of all its rows, one expert's below the other's, and `pieces` says which rows are whose. GGUF stacks
``gate_proj``, ``up_proj`` and ``down_proj``, as MLX does, with their scales beside them; their canonical name has ``*``
in the place of the number. transformers' modules have ``gate_up_proj``, an expert's rows of gate above those of up, and
``down_proj``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from bittorch.models.io.errors import FormatError

PARTS = {"gate_up_proj": ("gate_proj", "up_proj")}
STACK = re.compile(
    r"(?P<module>.+\.experts)\.(?:\*\.(?P<one>\w+)\.(?P<part>weight|scales|biases|row_alpha)"
    r"|(?P<all>gate_up_proj|down_proj)(?:\.weight)?)"
)


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


Value = TypeVar("Value", bound=Shaped)
Stored = TypeVar("Stored")


def stacked_name(name: str) -> str:
    """Of an expert's weight, the canonical name of the stack of all; other names as they are."""
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", name)


def pieces(name: str, shape: tuple[int, ...], what: str) -> dict[str, slice] | None:
    """The canonical name of each matrix of a stack, and its rows; None for a tensor that is none.

    Args:
        name: canonical.
        shape: ``(experts, rows, columns)``.
        what: names the file in errors.

    Raises:
        FormatError: a stack of other dimensions, or whose rows are not cut into gate and up.
    """
    found = STACK.fullmatch(name)
    if found is None:
        return None
    parts = PARTS.get(found["all"] or "", (found["one"] or found["all"],))
    kind = found["part"] or "weight"
    axes = ("experts", "rows") if kind == "row_alpha" else ("experts", "rows", "columns")
    if len(shape) != len(axes) or not math.prod(shape) or shape[1] % len(parts):
        raise FormatError(
            f"{what}: {name} must be ({', '.join(axes)}) with rows for {' and '.join(parts)}, got {shape}"
        )
    rows = shape[1] // len(parts)
    names = (f"{found['module']}.{expert}.{part}.{kind}" for expert in range(shape[0]) for part in parts)
    return {own: slice(index * rows, (index + 1) * rows) for index, own in enumerate(names)}


def unstacked(
    tensors: Mapping[str, Value], cut: Callable[[Value, slice], Value], what: str, count: int | None = None
) -> dict[str, Value]:
    """The tensors, stacks as the matrices of their experts.

    Args:
        tensors: by canonical name.
        cut: rows of a stack.
        what: names the file in errors.
        count: of the experts that a stack must have; None for any.

    Raises:
        FormatError: as `pieces`; another number of experts; a matrix that is there twice.
    """
    out: dict[str, Value] = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if STACK.fullmatch(name) and count is not None and shape[:1] != (count,):
            raise FormatError(f"{what}: {name} of shape {shape} must have the {count} experts of the configuration")
        found = pieces(name, shape, what)
        added = {name: tensor} if found is None else {own: cut(tensor, rows) for own, rows in found.items()}
        if twice := out.keys() & added.keys():
            raise FormatError(f"{what} has {min(twice)} twice: on its own, and in a stack of all experts")
        out |= added
    return out


def cut_bytes(stored: Stored, rows: slice) -> Stored:
    """Rows of a stack in a file; a dataclass with shape, offset and bytes, whose rows are of one size."""
    entry: Any = stored
    experts, height, *rest = entry.shape
    size = entry.bytes // (experts * height)
    return dataclasses.replace(
        entry,
        shape=(rows.stop - rows.start, *rest),
        offset=entry.offset + rows.start * size,
        bytes=(rows.stop - rows.start) * size,
    )
