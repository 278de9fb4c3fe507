"""compressed-tensors checkpoints of format pack-quantized with 2 bits.

``weight_packed`` int32 ``(N, ceil(K / 16))``, ``code + 2`` from the least significant bits on; ``weight_scale`` a
multiplier ``(1,)``, ``(N, 1)`` or ``(N, G)``; ``weight_shape`` the two sizes. Source: compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bittorch.models.io import choices, codecs
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import (
    Directory,
    DirectoryFormat,
    Found,
    Layout,
    Parts,
    encode_rows,
    refuse_depth,
)
from bittorch.models.io.errors import FormatError
from bittorch.models.io.hf_config import note
from bittorch.models.io.safetensors_header import RawTensor
from bittorch.models.io.ternary_tensor import TernaryTensor, chunks
from bittorch.models.packed_weight import PackedWeight

PARTS = ("weight_packed", "weight_scale", "weight_shape")


class CompressedTensor(TernaryTensor):
    """One linear layer's weight."""

    def __init__(self, name: str, packed: RawTensor, scale: RawTensor, shape: tuple[int, int]) -> None:
        size = packed.bytes + scale.bytes
        super().__init__(TensorInfo(name, "pack-quantized", shape, size, ternary=True), packed.file.path)
        self.stored, self.scale = packed, scale

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.info.shape
        data = self.stored.file.view(self.stored.offset, self.stored.bytes).reshape(rows, -1)
        for begin, end in chunks(rows, columns):
            out[begin:end] = codecs.decode_int32(data[begin:end], columns)
        self.stored.file.release(self.stored.offset, self.stored.bytes)
        scale = self.scale.tensor().float().clone()
        return scale.reshape(-1) if scale.dim() != 2 or scale.shape[1] == 1 else scale


def read_compressed(
    raw: Mapping[str, RawTensor], quantization: Mapping[str, Any], what: str
) -> dict[str, StoredTensor]:
    """The tensors of a compressed-tensors checkpoint by canonical name.

    Raises:
        FormatError: another format or number of bits, parts that are missing or do not fit each other.
    """
    _check_scheme(quantization, what)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in raw.items():
        module, _, kind = name.rpartition(".")
        if kind in ("weight_g_idx", "weight_zero_point"):
            raise FormatError(f"{what} has {name}; weights with {kind[7:]} are not ternary here")
        if kind not in PARTS:
            tensors[name] = DenseTensor(name, entry)
        if kind in PARTS and f"{module}.weight" not in tensors:
            if absent := [part for part in PARTS if f"{module}.{part}" not in raw]:
                raise FormatError(f"{what} has {name}, but no {module}.{absent[0]}")
            tensors[f"{module}.weight"] = _weight(module, [raw[f"{module}.{part}"] for part in PARTS], what)
    return tensors


def activation_bits(quantization: Mapping[str, Any], what: str) -> int | None:
    """8 where the scheme quantises activations to 8 bits, one scale per token, as it runs; None where it leaves them.

    Raises:
        FormatError: other activations, or not the same in all groups.
    """
    found = {name: _activation_bits(name, group, what) for name, group in quantization["config_groups"].items()}
    if len(set(found.values())) > 1:
        raise _refused(what, "input_activations", found, "one number of activation bits in all config_groups")
    return next(iter(found.values()))


# Field of an activation's scheme, its default, and what is run.
ACTIVATIONS = {"num_bits": (8, 8), "type": ("int", "int"), "symmetric": (True, True), "dynamic": (False, True)}


def _activation_bits(name: str, group: Mapping[str, Any], what: str) -> int | None:
    inputs = group.get("input_activations")
    if inputs is None:
        return None
    where = f"config_groups.{name}.input_activations"
    if not isinstance(inputs, dict):
        raise _refused(what, where, inputs, "null or an object")
    for field, (default, run) in ACTIVATIONS.items():
        value = default if inputs.get(field) is None else inputs[field]
        if value != run:
            raise _refused(what, f"{where}.{field}", value, repr(run))
    if inputs.get("strategy") not in (None, "token"):
        raise _refused(what, f"{where}.strategy", inputs["strategy"], "'token'")
    return 8


def _refused(what: str, field: str, value: object, supported: str) -> FormatError:
    return choices.refusal(
        "hf-compressed-scheme",
        f"{what}: quantization_config.{field} is {value!r:.200}, which is not supported; supported: {supported}",
    )


# Parts of a scheme that change what the model computes: each must be absent, or as here.
WHOLE: dict[str, tuple[Any, ...]] = {"kv_cache_scheme": (None,), "transform_config": (None, {})}


def _check_scheme(quantization: Mapping[str, Any], what: str) -> None:
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise FormatError(f"{what}: quantization_config of compressed-tensors has no config_groups")
    for field, known in WHOLE.items():
        if quantization.get(field) not in known:
            raise _refused(what, field, quantization[field], "null")
    sparsity = quantization.get("sparsity_config")
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format") not in (None, "dense")):
        raise _refused(what, "sparsity_config", sparsity, "format 'dense'")
    for name, group in groups.items():
        weights = group.get("weights")
        form = group.get("format") or quantization.get("format")
        given = (form, weights.get("num_bits"), weights.get("symmetric")) if isinstance(weights, dict) else (form,)
        if given != ("pack-quantized", 2, True):
            raise FormatError(
                f"{what}: compressed-tensors of (format, num_bits, symmetric) {given!r:.100} are not read; "
                "ternary ones are ('pack-quantized', 2, True)"
            )
        if weights.get("type") not in (None, "int"):
            raise _refused(what, f"config_groups.{name}.weights.type", weights["type"], "'int'")
        if group.get("output_activations") is not None:
            raise _refused(what, f"config_groups.{name}.output_activations", group["output_activations"], "null")


def _weight(module: str, parts: Sequence[RawTensor], what: str) -> CompressedTensor:
    packed, scale, shape = parts
    if shape.dtype not in ("I64", "I32") or shape.shape != (2,):
        raise FormatError(f"{what}: {module}.weight_shape must be two integers, got {shape.dtype} {shape.shape}")
    rows, columns = (int(size) for size in shape.tensor())
    if packed.dtype != "I32" or min(rows, columns) < 1 or packed.shape != (rows, -(-columns // 16)):
        raise FormatError(
            f"{what}: {module}.weight_packed must be I32 {(rows, -(-columns // 16))} for a weight {(rows, columns)}, "
            f"got {packed.dtype} {packed.shape}"
        )
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    fits = scale.shape in ((), (1,), (1, 1), (rows,), (rows, groups)) and groups >= 1
    if (
        scale.dtype not in ("F32", "F16", "BF16")
        or not fits
        or columns % groups
        or (groups > 1 and columns // groups % 4)
    ):
        raise FormatError(
            f"{what}: {module}.weight_scale must be floats for the tensor, for {rows} rows, or for groups of 4 n of "
            f"{columns} columns, got {scale.dtype} {scale.shape}"
        )
    return CompressedTensor(f"{module}.weight", packed, scale, (rows, columns))


def scheme(strategies: Mapping[tuple[str, int | None], list[str]], dense: list[str]) -> dict[str, Any]:
    """The quantization_config of a ternary model: weights of 2 bits, activations left alone.

    Args:
        strategies: modules by what shares a scale: ``tensor``, ``channel`` or ``group``, and the group's columns.
        dense: linear modules that are not ternary.
    """
    groups = {}
    for number, ((strategy, group_size), modules) in enumerate(strategies.items()):
        weights = {"num_bits": 2, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group_size}
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(strategies) == 1 else modules,
            "weights": {**weights, "dynamic": False},
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    kind = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    return {**kind, "config_groups": groups, "ignore": dense}


class CompressedLayout(Layout):
    """compressed-tensors, pack-quantized with 2 bits."""

    def __init__(self) -> None:
        self.strategies: dict[tuple[str, int | None], list[str]] = {}

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        refuse_depth(name, weight, "compressed-tensors")
        scale = weight.scale
        by_group = scale.dim() == 2
        strategy = "group" if by_group else "tensor" if scale.numel() == 1 else "channel"
        group_size = weight.in_features // scale.shape[1] if by_group else None
        self.strategies.setdefault((strategy, group_size), []).append(name.removesuffix(".weight"))
        shape = torch.tensor([weight.out_features, weight.in_features])
        words = encode_rows(weight, codecs.encode_int32)
        return {
            "weight_packed": words,
            "weight_scale": scale[:, None] if strategy == "channel" else scale,
            "weight_shape": shape,
        }

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        return scheme(self.strategies, dense)


class CompressedTensors(DirectoryFormat):
    """See `DirectoryFormat`."""

    methods = ("compressed-tensors",)
    targets = ("compressed-tensors",)

    def read(self, directory: Directory) -> Found:
        what, quantization = str(directory.path), directory.quantization
        assert quantization is not None
        tensors = read_compressed(directory.raw, quantization, what)
        recorded = note(directory.values).get("activation_bits")
        return Found("compressed-tensors", tensors, recorded or activation_bits(quantization, what))

    def layout(self, to: str, source: Checkpoint, allow_lossy: bool) -> CompressedLayout:
        if source.config.activation_bits is not None:
            choices.warn(
                "write-compressed-activations",
                f"the model has activation_bits={source.config.activation_bits}, which bittorch alone reads from a "
                "compressed-tensors directory; transformers and vLLM run it with floating activations, and differ",
            )
        return CompressedLayout()


FORMAT = CompressedTensors()
