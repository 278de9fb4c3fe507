"""Edits of packed layers in place: single codes, slices, masks, scales and rows of deltas, with undo."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn import PackedLayer


class _Step(NamedTuple):
    """What stood in some rows of one buffer."""

    name: str
    rows: Tensor
    old: Tensor


class Lens:
    """What `lens` gives: the codes of a packed layer as an int8 matrix ``(rows, columns)`` that can be assigned to.

    ``lens[key]`` reads and ``lens[key] = value`` writes, with the keys of torch: integers, slices, masks, lists. Each
    write checks all values first, packs the rows that change, and writes these in place: tensors that share the memory
    see it, and version counters go up.
    """

    def __init__(self, layer: PackedLayer) -> None:
        self._layer = layer
        self._steps: list[_Step] = []
        self._tensors = layer.weight_packed, layer.scale
        self._versions = self._current()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, an output or filter each, and columns."""
        return len(self._tensors[0]), self._layer.columns

    @property
    def scale(self) -> _Scale:
        """The scales, ``(1,)``, ``(rows,)`` or ``(rows, groups)``, to read and to assign to."""
        return _Scale(self)

    @property
    def edits(self) -> int:
        """How many edits `undo` can take back."""
        return len(self._steps)

    def __getitem__(self, key: Any) -> Tensor:
        """int8 codes of a key, a copy."""
        return self._codes()[_moved(key, self._tensors[0].device)]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Codes of a key.

        Raises:
            ValueError: a value that is none of -1, 0 and 1, with its index.
            TypeError: values that are no real numbers.
            IndexError: a key outside the matrix.
            RuntimeError: a value of another shape; a layer that another changed since.
        """
        codes = self._codes()
        codes[_moved(key, codes.device)] = _trits(value).to(codes.device)
        self._write_codes(codes)

    def add(self, rows: Any, delta: Any, *, saturate: bool = False) -> None:
        """Adds to some rows of codes: ``codes[rows[i]] += delta[i]``.

        Args:
            rows: ``(r,)`` different integers.
            delta: ``(r, columns)`` integers.
            saturate: sums beyond -1 and 1 end there; otherwise they are refused.

        Raises:
            ValueError: other shapes, a row twice, a sum that is no code, with its row and column.
            TypeError: numbers that are no integers.
            IndexError: a row outside the matrix.
        """
        codes = self._codes()
        at, change = torch.as_tensor(rows, device=codes.device), torch.as_tensor(delta, device=codes.device)
        for name, tensor in (("rows", at), ("delta", change)):
            if (tensor.is_floating_point() and tensor.numel()) or tensor.is_complex() or tensor.dtype == torch.bool:
                raise TypeError(f"{name} must be integers, got {tensor.dtype}")
        if at.dim() != 1 or change.shape != (len(at), self.shape[1]):
            raise ValueError(
                f"rows must be (r,) and delta (r, {self.shape[1]}), got {tuple(at.shape)} and {tuple(change.shape)}"
            )
        at, change = at.long(), change.long()
        old = codes[at].long()
        at = at % max(len(codes), 1)
        if len(at.unique()) != len(at):
            raise ValueError(f"rows must differ, got {at.tolist()}")
        sums = old + change.clamp(-3, 3)  # which no code brings back, and no sum overflows
        if saturate:
            sums = sums.clamp(-1, 1)
        elif bool((bad := sums.abs() > 1).any()):
            i, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"codes must stay -1, 0 or 1: row {int(at[i])}, column {column} would be {int(old[i, column])} + "
                f"{int(change[i, column])}; saturate=True ends there"
            )
        codes[at] = sums.to(torch.int8)
        self._write_codes(codes)

    @torch.no_grad()
    def undo(self, edits: int | None = None) -> None:
        """Takes back the last edits, or all.

        Raises:
            ValueError: more edits than there were.
            RuntimeError: a layer that another changed since.
        """
        count = len(self._steps) if edits is None else edits
        if not 0 <= count <= len(self._steps):
            raise ValueError(f"edits must be from 0 to the {len(self._steps)} that were made, got {edits}")
        self._check_own()
        for _ in range(count):
            step = self._steps.pop()
            getattr(self._layer, step.name).index_copy_(0, step.rows, step.old)
        self._versions = self._current()

    @torch.no_grad()
    def delta(self, x: Tensor) -> Tensor:
        """What all edits do to the output: what the layer gives for ``x`` now less what it gave before, in float64.

        Both are computed by the layer's own product, so that outputs that no edit reaches differ by exactly 0.

        Raises:
            RuntimeError: a layer that another changed since.
        """
        self._check_own()
        before = copy.copy(self._layer)
        before.__dict__["_buffers"] = dict(self._layer._buffers)
        for step in reversed(self._steps):
            tensor = before._buffers[step.name]
            assert tensor is not None
            before._buffers[step.name] = tensor.index_copy(0, step.rows, step.old)
        now: Tensor = self._layer(x).double() - before(x).double()
        return now

    def __repr__(self) -> str:
        return f"Lens({type(self._layer).__name__} {self.shape[0]}x{self.shape[1]}, {self.edits} edits)"

    def _current(self) -> tuple[int, int]:
        return self._tensors[0]._version, self._tensors[1]._version

    def _check_own(self) -> None:
        """RuntimeError where the buffers are others, or were written to by others: an undo would mix both."""
        held = self._layer.weight_packed, self._layer.scale
        moved = any(own is not tensor for own, tensor in zip(self._tensors, held, strict=True))
        if moved or self._versions != self._current():
            raise RuntimeError(
                f"{self._layer._called()} was moved, loaded or written to since this lens was made; make another one"
            )

    def _codes(self) -> Tensor:
        self._check_own()
        return ops.ternary_unpack(self._tensors[0], None, self._layer.columns, torch.int8)

    def _write_codes(self, codes: Tensor) -> None:
        self._write("weight_packed", ops.ternary_pack(codes))

    @torch.no_grad()
    def _write(self, name: str, new: Tensor) -> None:
        """One edit: the rows of a buffer that differ."""
        self._check_own()
        buffer = getattr(self._layer, name)
        rows = (new != buffer).flatten(1).any(1) if new.dim() > 1 else new != buffer
        at = rows.nonzero()[:, 0]
        self._steps.append(_Step(name, at, buffer[at]))
        buffer.index_copy_(0, at, new[at])
        self._versions = self._current()


class _Scale:
    """The scales of a lens."""

    def __init__(self, lens: Lens) -> None:
        self._lens = lens

    def __getitem__(self, key: Any) -> Tensor:
        self._lens._check_own()
        return self._lens._tensors[1].clone()[_moved(key, self._lens._tensors[1].device)]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Scales of a key, in float32; ValueError for NaN and Inf, and what does not fit in float32."""
        given = torch.as_tensor(value)
        if given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"scales must be real numbers, got {given.dtype}")
        new = self._lens._tensors[1].clone()
        _refuse(~torch.isfinite(given.float()), given, "scales must be finite float32")
        new[_moved(key, new.device)] = given.float().to(new.device)
        self._lens._write("scale", new)


def _moved(key: Any, device: torch.device) -> Any:
    """A key whose tensors are where the codes are."""
    if isinstance(key, tuple):
        return tuple(_moved(part, device) for part in key)
    return key.to(device) if isinstance(key, Tensor) else key


def _refuse(bad: Tensor, values: Tensor, wanted: str) -> None:
    if bool(bad.any()):
        at = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{wanted}, got {values[at].item()}" + (f" at index {at} of the value" if at else ""))


def _trits(value: Any) -> Tensor:
    values = torch.as_tensor(value)
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"codes must be -1, 0 or 1, got {values.dtype}")
    wide = values.double()  # to uint8 -1 is 255
    _refuse((wide != 0) & (wide != 1) & (wide != -1), values, "codes must be -1, 0 or 1")
    return values.to(torch.int8)


def lens(layer: nn.Module) -> Lens:
    """Edits the codes and scales of a packed layer in place.

    >>> edit = bittorch.utils.lens(packed.fc1)
    >>> edit[3, 17] = 1  # a code; slices, masks and lists work too
    >>> edit.scale[3] *= 0.5  # of a row; [3, 1] of its second group
    >>> edit.add([0, 5], delta)  # rows of -2 to 2
    >>> edit.delta(x)  # what the edits do to the output
    >>> edit.undo()  # all of them

    Tensors that share memory with the layer, such as a tied head, change with it. Whatever was computed before does
    not: caches of keys and values, and graphs that hold weights as constants (`torch.export`, frozen compiled ones).

    Args:
        layer: a `bittorch.nn.PackedLayer` of one plane: linear, convolution or embedding. A row of a convolution is a
            filter, its columns are those of the flattened filter.

    Raises:
        TypeError: another module; a layer that trains is edited by its ``weight``.
        ValueError: a layer of several planes, on the meta device, or made under `torch.inference_mode`.
    """
    if not isinstance(layer, PackedLayer):
        raise TypeError(
            f"lens takes a packed layer, such as bittorch.export_for_inference makes, got {type(layer).__name__}"
        )
    if layer.depth != 1:
        raise ValueError(f"lens takes layers of one plane, and {layer._called()} has depth {layer.depth}")
    for name in ("weight_packed", "scale"):
        tensor = getattr(layer, name)
        if tensor.is_meta or tensor.is_inference():
            what = "on the meta device; load it" if tensor.is_meta else "made under torch.inference_mode; clone it"
            raise ValueError(f"{name} of {layer._called()} is {what} first")
    return Lens(layer)
