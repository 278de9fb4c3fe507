"""Directories of MLX: rows of codes of a few bits, and a scale and a bias for each group of columns.

``weight`` uint32 ``(N, K bits / 32)``, codes q one behind the other from the least significant bits on; ``scales`` and
``biases`` ``(N, K / group_size)``: a weight is ``scale * q + bias``. With 2 bits it is ternary where the bias is minus
the scale and q is 0, 1 or 2; Maple's directories have a ``row_alpha`` ``(N,)`` for both. config.json says ``bits`` and
``group_size`` under ``quantization``, for some modules by their names.

Sources: mlx 0.32, backend/cpu/quantized.cpp and nn/layers/quantized.py; mlx-lm; deepgrove's fork of it (row_alpha).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bittorch.models.io import codecs
from bittorch.models.io.checkpoint import StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes, ReservedCode
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, DirectoryFormat, Found
from bittorch.models.io.errors import FormatError
from bittorch.models.io.safetensors_header import RawTensor
from bittorch.models.io.ternary_tensor import TernaryTensor, check_scale, chunks, collapse_scale

FLOATS = ("F32", "F16", "BF16")
BITS = (2, 3, 4, 5, 6, 8)
PARTS = ("scales", "biases", "row_alpha")
IGNORED = "lm_head_flash."  # finds likely tokens without the whole head; the head itself is exact
WHOLE = ("model.embed_tokens", "lm_head")  # which may be floats where layers must be ternary
ROTATION = "hadamard.json"


class Scheme(NamedTuple):
    """How a module is stored."""

    bits: int
    group: int


class Quantized(NamedTuple):
    """The tensors of one module; a ``row_alpha`` has no biases."""

    weight: RawTensor
    scales: RawTensor
    biases: RawTensor | None
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1] * 32 // self.scheme.bits

    @property
    def bytes(self) -> int:
        return self.weight.bytes + self.scales.bytes + (self.biases.bytes if self.biases else 0)

    def rows(self, begin: int, end: int) -> Bytes:
        """``(end - begin, 4 words)`` bytes of the codes."""
        size = 4 * self.weight.shape[1]
        view = self.weight.file.view(self.weight.offset + begin * size, (end - begin) * size)
        return view.reshape(end - begin, size)

    def scale(self) -> Tensor:
        """float32 ``(N, groups)``."""
        return self.scales.tensor().to(torch.float32, copy=True).reshape(self.shape[0], -1)

    def bias(self) -> Tensor:
        return -self.scale() if self.biases is None else self.biases.tensor().float()

    def release(self) -> None:
        for part in (self.weight, self.scales, self.biases):
            if part is not None:
                part.file.release(part.offset, part.bytes)


class MLXTernary(TernaryTensor):
    """Codes of 2 bits that are trits."""

    def __init__(self, name: str, stored: Quantized) -> None:
        info = TensorInfo(name, "MLX 2-bit", stored.shape, stored.bytes, ternary=True)
        super().__init__(info, stored.weight.file.path)
        self.stored = stored

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.info.shape
        for begin, end in chunks(rows, columns):
            out[begin:end] = codecs.canonical_from_plus_one(self.stored.rows(begin, end))
        scale = self.stored.scale()
        check_scale(scale, self.where, columns)
        if (place := not_minus(self.stored, rows)) is not None:
            raise FormatError(_not_ternary(self.where, self.stored, place))
        self.release()
        used = out.reshape(rows, scale.shape[1], -1).max(axis=2)
        return collapse_scale(scale.numpy(), used == 0)

    def release(self) -> None:
        self.stored.release()


class MLXDense(StoredTensor):
    """Codes that stand for floats."""

    def __init__(self, name: str, stored: Quantized) -> None:
        info = TensorInfo(name, f"MLX {stored.scheme.bits}-bit", stored.shape, stored.bytes)
        super().__init__(info, stored.weight.file.path)
        self.stored = stored

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        rows, columns = self.info.shape
        scale, bias = self.stored.scale(), self.stored.bias()
        for part in (scale, bias):
            check_scale(part, self.where, columns)
        out = torch.empty(self.info.shape, dtype=dtype or torch.float32)
        for begin, end in chunks(rows, columns):
            codes = torch.from_numpy(_codes(self.stored.rows(begin, end), self.stored.scheme.bits))
            groups = codes.view(end - begin, scale.shape[1], -1).float()
            out[begin:end] = (groups * scale[begin:end, :, None] + bias[begin:end, :, None]).flatten(1)
        self.release()
        return out

    def release(self) -> None:
        self.stored.release()


def _codes(data: Bytes, bits: int) -> Bytes:
    """``(N, K)`` codes of a stream of bits in each row."""
    if 8 % bits == 0:
        fields = [(data >> np.uint8(shift)) & np.uint8(2**bits - 1) for shift in range(0, 8, bits)]
        return np.stack(fields, -1).reshape(len(data), -1)
    single = np.unpackbits(data, axis=1, bitorder="little").reshape(len(data), -1, bits)
    return np.asarray(single @ (1 << np.arange(bits, dtype=np.uint8)), np.uint8)


def not_minus(stored: Quantized, rows: int) -> tuple[int, int] | None:
    """Row and group, of the first ``rows``, of the first bias that is not minus its scale."""
    if stored.biases is None:
        return None
    bad = (stored.biases.tensor()[:rows] != -stored.scales.tensor()[:rows]).nonzero()
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def _not_ternary(where: str, stored: Quantized, place: tuple[int, int]) -> str:
    first, last = (group * stored.scheme.group for group in (place[1], place[1] + 1))
    scale, bias = float(stored.scale()[place]), float(stored.bias()[place])
    return (
        f"{where} is no ternary weight: at row {place[0]}, columns {first} to {last - 1}, its scale is {scale!r} and "
        f"its bias {bias!r}, which must be minus the scale; other weights of 2 bits are not read"
    )


def _is_ternary(stored: Quantized) -> bool:
    """Of all codes and biases."""
    rows, columns = stored.shape
    try:
        for begin, end in chunks(rows, columns):
            codecs.canonical_from_plus_one(stored.rows(begin, end))
    except ReservedCode:
        return False
    return not_minus(stored, rows) is None


def read_mlx(raw: Mapping[str, RawTensor], settings: Mapping[str, Any], what: str) -> dict[str, StoredTensor]:
    """The tensors of an MLX directory by canonical name.

    Layers of 2 bits must be ternary: the first row is checked here, others as they are read. Embedding, head, routers
    and other numbers of bits may be floats.

    Raises:
        FormatError: modes, bits or groups that MLX does not have; parts that are missing or do not fit each other.
    """
    tensors: dict[str, StoredTensor] = {}
    for name, entry in raw.items():
        module, _, kind = name.rpartition(".")
        packed = raw.get(f"{module}.weight")
        if name.startswith(IGNORED):
            continue
        if kind in PARTS:
            if packed is None or packed.dtype != "U32":
                raise FormatError(f"{what} has {name}, but no {module}.weight of uint32 words")
        elif kind == "weight" and entry.dtype == "U32":
            tensors[name] = _weight(module, raw, scheme_of(module, settings, what), what)
        else:
            tensors[name] = DenseTensor(name, entry)
    return tensors


def _weight(module: str, raw: Mapping[str, RawTensor], scheme: Scheme, what: str) -> StoredTensor:
    name, weight = f"{module}.weight", raw[f"{module}.weight"]
    alpha, scales, biases = (raw.get(f"{module}.{part}") for part in ("row_alpha", "scales", "biases"))
    if alpha is not None and scheme.bits != 2:
        raise FormatError(f"{what}: {module} has a row_alpha, which is for 2 bits, and {scheme.bits} bits")
    if (alpha is None) == (scales is None) or (alpha is None) != (biases is not None):
        found = [part for part in PARTS if f"{module}.{part}" in raw]
        raise FormatError(
            f"{what}: {name} needs scales and biases, or a row_alpha; it has {', '.join(found) or 'none'}"
        )
    if len(weight.shape) != 2 or not weight.shape[0] or weight.shape[1] * 32 % scheme.bits:
        raise FormatError(f"{what}: {name} of shape {weight.shape} is not cut into rows of {scheme.bits}-bit codes")
    first = alpha or scales
    assert first is not None
    stored = Quantized(weight, first, biases, scheme)
    rows, columns = stored.shape
    wanted = (rows,) if alpha is not None else (rows, columns // scheme.group)
    for part in (first, biases):
        if part is not None and (part.dtype not in FLOATS or part.shape != wanted or columns % scheme.group):
            raise FormatError(
                f"{what}: the scales of {name}, whose codes are {stored.shape}, must be floats {wanted} for groups of "
                f"{scheme.group} columns, got {part.dtype} {part.shape}"
            )
    if biases is not None and biases.dtype != first.dtype:
        raise FormatError(f"{what}: {module} has scales of {first.dtype} and biases of {biases.dtype}")
    if scheme.bits == 2 and ("_proj" in module.rpartition(".")[2] or (module in WHOLE and _is_ternary(stored))):
        if (place := not_minus(stored, 1)) is not None:  # later rows when they are read
            raise FormatError(_not_ternary(f"{what}: {name}", stored, place))
        return MLXTernary(name, stored)
    return MLXDense(name, stored)


def scheme_of(module: str, settings: Mapping[str, Any], what: str) -> Scheme:
    """What config.json says of a module, by its canonical name. Raises FormatError."""
    given = (settings.get(path) for path in _paths(module))
    own: Mapping[str, Any] = next((entry for entry in given if isinstance(entry, dict)), {})
    mode, bits, group = (own.get(key, settings.get(key, usual)) for key, usual in DEFAULTS.items())
    where = f"{what}: quantization of {module} in config.json"
    if mode != "affine":
        raise FormatError(f"{where} has mode {mode!r:.40}; affine is read")
    if type(bits) is not int or bits not in BITS:
        raise FormatError(f"{where} has bits {bits!r:.40}; known are {', '.join(map(str, BITS))}")
    if type(group) is not int or group < 4 or group % 4 or group >= 2**31:
        raise FormatError(f"{where} has group_size {group!r:.40}; it must be a multiple of 4 columns")
    return Scheme(bits, group)


DEFAULTS = {"mode": "affine", "bits": 4, "group_size": 64}


def _paths(module: str) -> Iterator[str]:
    """The names that MLX may have for a module."""
    yield module
    yield re.sub(r"\.experts\.\d+\.", ".switch_mlp.", module)
    yield module.replace("embed_tokens", "word_embeddings")


class MLX(DirectoryFormat):
    """See `DirectoryFormat`."""

    def matches(self, directory: Directory) -> bool:
        return self._settings(directory) is not None

    def read(self, directory: Directory) -> Found:
        """MLX leaves activations floating."""
        settings, what = self._settings(directory), str(directory.path)
        assert settings is not None
        if (directory.path / ROTATION).exists():
            raise FormatError(
                f"{directory.path / ROTATION} says that weights stand in a rotated basis, which is not read of MLX "
                "directories; the GGUF file of the same model is"
            )
        return Found("mlx", read_mlx(directory.raw, settings, what), None)

    def _settings(self, directory: Directory) -> Mapping[str, Any] | None:
        """``quantization``, which MLX repeats as a quantization_config without a method."""
        given = directory.values.get("quantization", directory.quantization)
        method = (directory.quantization or {}).get("quant_method")
        return given if isinstance(given, dict) and "bits" in given and method is None else None


FORMAT = MLX()
