"""Weights in a rotated basis: blocks of Walsh-Hadamard transforms with signs, which the activations go through too.

A stored weight is ``W' = W diag(s) H`` along its columns, so ``W x = W' (H (s * x))``. A stored row of an embedding is
``z = H (s * h)``, so ``h = s * (H z)``. H is of `bittorch.ops.hadamard`: orthogonal and symmetric.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bittorch.ops import hadamard

LARGEST_BLOCK = 32768  # of the op


@dataclasses.dataclass(frozen=True)
class Hadamard:
    """Which weights of a model stand in a rotated basis, and in which.

    Args:
        block_size: of the transform, a power of two.
        weights: canonical names of the weights whose input is rotated, those of experts with ``*`` for the number. The
            head is ``lm_head.weight``, tied or not.
        embedding: whether the rows of the embedding stand in the basis.
        signs: by width, 1 or -1 for each channel; empty for none.

    Raises:
        ValueError: values out of range; the message names the field.
    """

    block_size: int
    weights: tuple[str, ...]
    embedding: bool = False
    signs: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        size = self.block_size
        if type(size) is not int or not 0 < size <= LARGEST_BLOCK or size & (size - 1):
            raise ValueError(
                f"hadamard block_size must be a power of two up to {LARGEST_BLOCK}, got {self.block_size!r:.40}"
            )
        if not self.weights or not all(isinstance(name, str) for name in self.weights):
            raise ValueError(f"hadamard weights must be names of weights, got {self.weights!r:.100}")
        if type(self.embedding) is not bool:
            raise ValueError(f"hadamard embedding must be True or False, got {self.embedding!r:.40}")
        for width, signs in self.signs.items():
            if type(width) is not int or width < 1 or width % size:
                raise ValueError(f"hadamard signs of width {width!r:.40} are not cut into blocks of block_size={size}")
            if len(signs) != width:
                raise ValueError(f"hadamard signs of width {width} must be as many, got {len(signs)}")
            if wrong := [(index, sign) for index, sign in enumerate(signs) if sign not in (1, -1)]:
                raise ValueError(f"hadamard sign {wrong[0][0]} of width {width} must be 1 or -1, got {wrong[0][1]!r}")
        object.__setattr__(self, "weights", tuple(sorted(set(self.weights))))

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The weights, to look them up."""
        return frozenset(self.weights)

    def check(self, columns: Mapping[str, int], hidden_size: int) -> None:
        """Compares with the model.

        Args:
            columns: of every weight that is a product's, by canonical name with ``*`` for an expert's number.
            hidden_size: of the embedding.

        Raises:
            ValueError: a name that is no weight of a product, columns that are not cut into blocks or have no signs.
        """
        if unknown := [name for name in self.weights if name not in columns]:
            raise ValueError(f"hadamard weights name {unknown[0]!r:.100}, which no product of the model has")
        widths = {name: columns[name] for name in self.weights}
        for name, width in (widths | ({"the embedding": hidden_size} if self.embedding else {})).items():
            if width % self.block_size:
                raise ValueError(f"hadamard block_size={self.block_size} does not divide the {width} columns of {name}")
            if self.signs and width not in self.signs:
                known = ", ".join(map(str, self.signs))
                raise ValueError(f"hadamard signs are of widths {known}, and {name} has {width} columns")

    def basis(self, width: int, device: torch.device) -> Basis:
        """For vectors of ``width`` channels."""
        signs = torch.tensor(self.signs[width], dtype=torch.int8, device=device) if self.signs else None
        return Basis(self.block_size, signs)


def to_note(found: Hadamard) -> dict[str, Any]:
    """As a config.json holds it; signs as a text of + and -."""
    signs = {str(width): "".join("+" if sign > 0 else "-" for sign in own) for width, own in found.signs.items()}
    return {**dataclasses.asdict(found), "weights": list(found.weights), "signs": signs}


def of_note(note: Any) -> Hadamard | None:
    """The inverse; None of None. Raises ValueError."""
    if note is None:
        return None
    names = {field.name for field in dataclasses.fields(Hadamard)}
    if not isinstance(note, dict) or set(note) != names or not isinstance(note["signs"], dict):
        raise ValueError(f"hadamard must have {', '.join(sorted(names))}, got {note!r:.100}")
    if not isinstance(note["weights"], list):
        raise ValueError(f"hadamard weights must be a list, got {note['weights']!r:.100}")
    signs = {}
    for width, text in note["signs"].items():
        if not width.isdecimal() or not isinstance(text, str):
            raise ValueError(f"hadamard signs must be texts of + and - by width, got {width!r:.40}: {text!r:.40}")
        signs[int(width)] = tuple({"+": 1, "-": -1}.get(sign, 0) for sign in text)
    return Hadamard(note["block_size"], tuple(note["weights"]), note["embedding"], signs)


class Basis(nn.Module):
    """The transform of vectors of one width; ``signs`` are int8 or None."""

    signs: Tensor | None

    def __init__(self, block_size: int, signs: Tensor | None) -> None:
        super().__init__()
        self.block_size = block_size
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Into the basis: ``H (s * x)``."""
        return hadamard(x, self.block_size, sign_before=self.signs)

    def back(self, z: Tensor) -> Tensor:
        """Out of it: ``s * (H z)``."""
        return hadamard(z, self.block_size, sign_after=self.signs)


class Rotated(nn.Module):
    """``linear(H (s * x))``: a layer whose weight stands in the basis. What quantises activations comes after it."""

    def __init__(self, linear: nn.Module, basis: Basis) -> None:
        super().__init__()
        self.linear, self.basis = linear, basis

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(self.basis(x))
        return output


def unrotated(module: nn.Module) -> nn.Module:
    """The layer that holds the weight."""
    return module.linear if isinstance(module, Rotated) else module
