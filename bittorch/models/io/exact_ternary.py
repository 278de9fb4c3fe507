"""Weights stored as floats that are trits times a scale, exactly: read as the ternary weights that they are.

Training code often publishes a ternary model that way, as bfloat16 that any program runs. A weight counts where in each
group of 64 columns all that is not zero has one magnitude; scales that groups, rows, blocks of columns or the tensor
share are merged. Nothing is rounded: what is not exactly of this form stays dense.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io import choices
from bittorch.models.io.checkpoint import StoredTensor
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.errors import FormatError
from bittorch.models.io.stacks import stacked_name
from bittorch.models.io.ternary_tensor import TernaryTensor, chunks, collapse_scale

TERNARY = ("auto", "never", "require")
GROUP = 64  # columns; larger groups are merged from it, and fast kernels take no smaller ones
NARROW = (32, 16, 8, 4)
FLOATS = ("F32", "F16", "BF16")
WHOLE = (EMBEDDING, HEAD)  # which may be ternary or not beside ternary layers
LINEAR = re.compile(r"model\.layers\..+_proj(_\w+)?\.weight")
GATES = re.compile(r".+\.in_proj_[ab]\.weight")  # of a DeltaNet: a row a head, which may be floats as routers may


class ExactTernary(TernaryTensor):
    """A matrix of floats that `recognised` has found to be ternary, with a scale for each ``group`` of columns."""

    def __init__(self, floats: StoredTensor, group: int) -> None:
        kind = f"{floats.info.type} (ternary)"
        super().__init__(dataclasses.replace(floats.info, type=kind, ternary=True), floats.path)
        self.floats, self.group = floats, group

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.info.shape
        weight = self.floats.dense()
        scale = torch.empty((rows, columns // self.group))
        for begin, end in chunks(rows, columns):
            part = weight[begin:end]
            out[begin:end] = ops.ternary_pack(part.sign().to(torch.int8)).numpy()
            scale[begin:end] = part.abs().unflatten(1, (-1, self.group)).amax(2)
        self.release()
        if not bool(scale.any()):
            return torch.ones(1)  # of zeros any scale is right, and nobody can divide by 0
        found = scale.numpy()
        return collapse_scale(found, found == 0)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.floats.dense(dtype)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.floats.copied(dtype)

    def release(self) -> None:
        self.floats.release()


class _Seen(NamedTuple):
    """The columns of the largest groups that have one magnitude each, and whether a matrix is all zeros."""

    group: int
    zeros: bool


def recognised(tensors: Mapping[str, StoredTensor], what: str, ternary: str = "auto") -> dict[str, StoredTensor]:
    """The tensors, matrices that are exactly ternary as such; a warning says how many there are.

    A dense weight costs a look at three of its rows. A matrix of zeros counts beside other experts that count.

    Args:
        tensors: by canonical name.
        what: names the checkpoint in messages.
        ternary: ``auto``: what is exactly ternary in groups of 64 columns or more counts, which fast kernels take.
            ``never``: nothing does. ``require``: groups of 4 columns count too, and zeros, and each linear weight of
            a layer must be ternary.

    Raises:
        FormatError: a linear weight that is not, where ``ternary`` is ``require``; with row, columns and values.
    """
    if ternary == "never":
        return dict(tensors)
    floats = {
        name: stored
        for name, stored in tensors.items()
        if stored.info.type in FLOATS and len(stored.info.shape) == 2 and (LINEAR.fullmatch(name) or name in WHOLE)
    }
    seen = {name: found for name, stored in floats.items() if (found := _look(stored)) is not None}
    strict = ternary == "require"
    if strict:
        _check_all(tensors, seen, what)
    wide = {name for name, own in seen.items() if not own.zeros and (strict or _is_wide(own, floats[name]))}
    stacks = {stacked_name(name) for name in wide}
    taken = {
        name for name, own in seen.items() if name in wide or (own.zeros and (strict or stacked_name(name) in stacks))
    }
    _tell(floats, seen, taken, what)
    return {**tensors, **{name: ExactTernary(floats[name], seen[name].group) for name in seen if name in taken}}


def _tell(floats: Mapping[str, StoredTensor], seen: Mapping[str, _Seen], taken: set[str], what: str) -> None:
    """Warns of what is taken for ternary, and of what could be."""
    if taken:
        first = next(name for name in seen if name in taken)
        others = [name for name in floats if name not in taken and name not in WHOLE]
        rest = f"; {len(others)} others are not and stay floats, such as {others[0]}" if others else ""
        choices.warn(
            "exact-ternary",
            f"{what}: {len(taken)} weights are stored as {floats[first].info.type} but are exactly trits times scales, "
            f"such as {first}: they are read packed, as ternary weights with these scales, and nothing is rounded"
            f"{rest}. ternary='never' reads floats",
        )
    if narrow := [name for name, own in seen.items() if name not in taken and not own.zeros]:
        choices.warn(
            "exact-ternary-narrow",
            f"{what}: {len(narrow)} weights are exactly trits times scales of fewer than {GROUP} columns, such as "
            f"{narrow[0]} of {seen[narrow[0]].group}. They stay floats, because only the portable kernel, which is "
            "many times slower, takes such groups; ternary='require' packs them",
        )


def _is_wide(seen: _Seen, stored: StoredTensor) -> bool:
    return seen.group in (GROUP, stored.info.shape[1])


def _groups(columns: int) -> tuple[int, ...]:
    """Columns of the groups that are looked for, the largest first; each of the later ones divides the one before."""
    whole = GROUP if columns % GROUP == 0 else columns
    return (whole, *(group for group in NARROW if columns % group == 0))


def _look(stored: StoredTensor) -> _Seen | None:
    """None for a matrix that is not ternary."""
    rows, columns = stored.info.shape
    if not rows or not columns:
        return None
    weight, groups = stored.dense(), _groups(columns)
    exact = all(_of_one_magnitude(weight[row], groups[-1]) for row in {0, rows // 2, rows - 1})
    found = next((group for group in groups if exact and _is_exact(weight, group)), None)
    zeros = found is not None and not (bool(weight[:1].any()) or bool(weight.any()))
    stored.release()
    return None if found is None else _Seen(found, zeros)


def _is_exact(weight: Tensor, group: int) -> bool:
    return all(_of_one_magnitude(weight[begin:end], group) for begin, end in chunks(*weight.shape))


def _magnitudes(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group, as integers that are in the order of the floats: all, the largest, and what is infinite."""
    kind = {4: torch.int32, 2: torch.int16}[weight.element_size()]
    sign = torch.iinfo(kind).max
    groups = (weight.contiguous().view(kind) & sign).reshape(-1, group)  # twice as fast as absolute floats
    return groups, groups.amax(1, keepdim=True), torch.tensor(float("inf"), dtype=weight.dtype).view(kind)


def _of_one_magnitude(weight: Tensor, group: int) -> bool:
    """Whether in each group everything that is not zero has one finite magnitude."""
    groups, largest, infinite = _magnitudes(weight, group)
    others = torch.minimum(largest - groups, groups).reshape(-1)  # 0 for what is 0 or the largest
    if len(others) % 8 == 0:
        others = others.view(torch.int64)  # fewer numbers to look at
    return not bool(others.any()) and bool((largest < infinite).all())


def _check_all(tensors: Mapping[str, StoredTensor], seen: Mapping[str, _Seen], what: str) -> None:
    """Raises FormatError for the first linear weight of a layer that is not ternary."""
    for name, stored in tensors.items():
        if not LINEAR.fullmatch(name) or GATES.fullmatch(name) or stored.info.ternary or name in seen:
            continue
        why = f"its type is {stored.info.type}"
        if stored.info.type in FLOATS and len(stored.info.shape) == 2:
            why = _fault(stored)
        raise FormatError(
            f"{what}: {name} of shape {stored.info.shape} is not exactly ternary: {why}. ternary='auto' leaves such "
            "weights as they are"
        )


def _fault(stored: StoredTensor) -> str:
    """Where a matrix of floats has two magnitudes, or one that is not finite, however small the groups."""
    rows, columns = stored.info.shape
    weight, group = stored.dense(), _groups(columns)[-1]
    for begin, end in chunks(rows, columns):
        groups, largest, infinite = _magnitudes(weight[begin:end], group)
        bad = ((groups != largest) & (groups != 0)) | (groups >= infinite)
        if bool(bad.any()):
            row, column = divmod(cast(int, bad.reshape(-1).nonzero()[0].item()), columns)
            other = column // group * group + int(groups.reshape(-1, group)[(row * columns + column) // group].argmax())
            value, largest_value = (float(weight[begin + row, at]) for at in (column, other))
            beside = f" beside {largest_value:.9g} at column {other}" if other != column else ""
            return f"row {begin + row}, column {column} is {value:.9g}{beside}"
    return "it is empty"
