"""Weights stored as floats that are trits times a scale, exactly: read as the ternary weights that they are.

Training code often publishes a ternary model that way, as bfloat16 that any program runs. A weight counts where in each
group of 64 columns all that is not zero has one magnitude; scales that groups, rows or the tensor share are merged.
Nothing is rounded: what is not exactly of this form stays dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io import choices
from bittorch.models.io.checkpoint import StoredTensor
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.ternary_tensor import TernaryTensor, chunks, collapse_scale

GROUP = 64  # columns; larger groups are merged from it
FLOATS = ("F32", "F16", "BF16")


class ExactTernary(TernaryTensor):
    """A matrix of floats that `recognised` has found to be ternary."""

    def __init__(self, floats: StoredTensor) -> None:
        kind = f"{floats.info.type} (ternary)"
        super().__init__(dataclasses.replace(floats.info, type=kind, ternary=True))
        self.floats = floats

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.info.shape
        weight, group = self.floats.dense(), _group(columns)
        scale = torch.empty((rows, columns // group))
        for begin, end in chunks(rows, columns):
            part = weight[begin:end]
            out[begin:end] = ops.ternary_pack(part.sign().to(torch.int8)).numpy()
            scale[begin:end] = part.abs().unflatten(1, (-1, group)).amax(2)
        self.release()
        found = scale.numpy()
        return collapse_scale(found, found == 0)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.floats.dense(dtype)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.floats.copied(dtype)

    def release(self) -> None:
        self.floats.release()


def recognised(tensors: Mapping[str, StoredTensor], what: str) -> dict[str, StoredTensor]:
    """The tensors, linear weights that are exactly ternary as such; a warning says how many there are.

    A dense weight costs a look at three of its rows.

    Args:
        tensors: by canonical name.
        what: names the checkpoint in the warning.
    """
    found = {name: ExactTernary(stored) for name, stored in tensors.items() if _is_linear(name) and _is_exact(stored)}
    if found:
        first = next(iter(found.values())).floats.info.type
        choices.warn(
            "exact-ternary",
            f"{what}: {len(found)} weights are stored as {first} but are exactly trits times scales, such as "
            f"{next(iter(found))}: they are read packed, as ternary weights with these scales, and nothing is rounded",
        )
    return {**tensors, **found}


def _is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "lm_head.weight"


def _group(columns: int) -> int:
    return GROUP if columns % GROUP == 0 else columns


def _is_exact(stored: StoredTensor) -> bool:
    if stored.info.type not in FLOATS or len(stored.info.shape) != 2:
        return False
    rows, columns = stored.info.shape
    weight, group = stored.dense(), _group(columns)
    exact = all(_of_one_magnitude(weight[row], group) for row in {0, rows // 2, rows - 1})
    exact = exact and all(_of_one_magnitude(weight[a:b], group) for a, b in chunks(rows, columns))
    exact = exact and bool(weight.any())  # a matrix of zeros is not said to be ternary
    stored.release()
    return exact


def _of_one_magnitude(weight: Tensor, group: int) -> bool:
    """Whether in each group everything that is not zero has one finite magnitude."""
    groups = weight.abs().reshape(-1, group)
    largest = groups.amax(1, keepdim=True)
    return bool(((groups == largest) | (groups == 0)).all()) and bool(torch.isfinite(largest).all())
