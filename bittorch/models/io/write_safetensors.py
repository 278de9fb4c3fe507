"""Directories of config.json and one safetensors file, written tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch.models.config import ModelConfig
from bittorch.models.io import codecs
from bittorch.models.io.checkpoint import Checkpoint, PackedWeight
from bittorch.models.io.errors import LossyError
from bittorch.models.io.hf_compressed import scheme
from bittorch.models.io.hf_config import config_to_hf, note_of
from bittorch.models.io.own import BASE3_LAYOUT, LAYOUTS
from bittorch.models.io.safetensors_header import DTYPES
from bittorch.models.io.ternary_tensor import chunks
from bittorch.utils.checkpoint import FORMAT_VERSION, LAYOUT

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What the header needs at most for a tensor besides its name: offsets and shape of 20 digits, a layer's configuration.
HEADER_PER_TENSOR = 512

Parts = Mapping[str, Tensor]


class SafetensorsFile:
    """A safetensors file whose header is written last, in space kept for it."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.reserved = -(-(4096 + sum(HEADER_PER_TENSOR + 6 * len(name) for name in names)) // 64) * 64 - 8
        self.header: dict[str, Any] = {}
        self.file = open(path, "xb")  # noqa: SIM115, closed by its owner
        self.file.seek(8 + self.reserved)
        self.end = 0

    def add(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().contiguous()
        size = data.numel() * data.element_size()
        self.header[name] = {
            "dtype": DTYPE_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self.end, self.end + size],
        }
        self.file.write(data.reshape(-1).view(torch.uint8).numpy().data)
        self.end += size

    def finish(self, metadata: Mapping[str, str]) -> None:
        text = json.dumps({"__metadata__": dict(metadata), **self.header}).encode()
        assert len(text) <= self.reserved
        self.file.seek(0)
        self.file.write(self.reserved.to_bytes(8, "little") + text.ljust(self.reserved))
        self.file.flush()
        os.fsync(self.file.fileno())


class Layout:
    """What one kind of directory stores for a ternary weight, and what its config.json says of it.

    Attributes:
        one_dtype: all floats of a file must have one dtype, as transformers runs no model that mixes them.
    """

    one_dtype = True

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        """Tensors by their last names, ``weight`` and so on."""
        raise NotImplementedError

    def bias(self, bias: Tensor, weight: PackedWeight) -> Tensor:
        return bias

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        """quantization_config; ``dense`` are the linear modules that are not ternary."""
        raise NotImplementedError


class OwnLayout(Layout):
    """bittorch's own; five trits a byte with ``base3``."""

    one_dtype = False

    def __init__(self, source: Checkpoint, base3: bool) -> None:
        self.layout = BASE3_LAYOUT if base3 else LAYOUT
        self.source = source
        self.layers: dict[str, dict[str, Any]] = {}

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        scale = weight.scale
        groups = (
            scale.shape[1] if scale.dim() == 2 else 0 if scale.numel() == 1 and len(weight.weight_packed) > 1 else 1
        )
        sizes = {"in_features": weight.in_features, "out_features": weight.out_features}
        # The bias is entered once it is seen, after its weight.
        rest = {"bias": False, "groups": groups, "activation_bits": self.source.activation_bits(name)}
        depth = {"depth": weight.depth} if weight.depth > 1 else {}
        self.layers[name.removesuffix(".weight")] = {**sizes, **rest, **depth}
        codes = weight.weight_packed
        if self.layout == BASE3_LAYOUT:
            codes = encode_rows(weight, codecs.encode_base3)
        return {LAYOUTS[self.layout][0]: codes, "scale": scale}

    def metadata(self) -> dict[str, str]:
        header = {"version": FORMAT_VERSION, "layout": self.layout, "layers": self.layers, "aliases": {}}
        return {"format": "pt", "bittorch": json.dumps(header)}

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        return {"quant_method": "bittorch"}


class BitNetLayout(Layout):
    """Packed as transformers packs it, with multipliers: ``autobitlinear``, offline."""

    def __init__(self, config: ModelConfig, allow_lossy: bool) -> None:
        self.allow_lossy = allow_lossy
        if config.activation_bits != 8 and not allow_lossy:
            raise LossyError(
                f"transformers runs BitNet layers with 8-bit activations, the model has activation_bits="
                f"{config.activation_bits}; its outputs would change. Say allow_lossy to write it nevertheless"
            )

    def parts(self, name: str, weight: PackedWeight) -> Parts:
        refuse_depth(name, weight, "bitnet")
        if weight.scale.numel() != 1:
            raise LossyError(
                f"{name} has scales {tuple(weight.scale.shape)}, transformers' BitNet one for the tensor; "
                "write bittorch or compressed-tensors"
            )
        if weight.out_features % 4:
            raise LossyError(f"{name} has {weight.out_features} rows; transformers packs multiples of 4")
        return {"weight": _encode_bitnet(weight), "weight_scale": weight.scale.reshape(1)}

    def bias(self, bias: Tensor, weight: PackedWeight) -> Tensor:
        if not self.allow_lossy:
            raise LossyError("autobitlinear multiplies a bias by the weight's scale; dividing by it first rounds")
        return (bias.float() / weight.scale).to(bias.dtype)

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        mode = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
        return {"quant_method": "bitnet", **mode, "modules_to_not_convert": dense}


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


def refuse_depth(name: str, weight: PackedWeight, to: str) -> None:
    if weight.depth != 1:
        raise LossyError(f"{name} is the sum of {weight.depth} ternary planes, which {to} cannot store; write bittorch")


def encode_rows(weight: PackedWeight, encode: Callable[[codecs.Codes], Any]) -> Tensor:
    """The rows of a packed weight in another layout, some at a time."""
    packed = weight.weight_packed.numpy()
    spans = chunks(len(packed), weight.in_features)
    parts = [torch.from_numpy(encode(codecs.unpack(packed[a:b], weight.in_features))) for a, b in spans]
    return torch.cat(parts)


def _encode_bitnet(weight: PackedWeight) -> Tensor:
    packed = weight.weight_packed.numpy()
    rows = len(packed) // 4
    out = torch.empty((rows, weight.in_features), dtype=torch.uint8)
    for begin, end in chunks(rows, 4 * weight.in_features):
        quarters = [packed[i * rows + begin : i * rows + end] for i in range(4)]
        codes = [codecs.unpack(quarter, weight.in_features) for quarter in quarters]
        out[begin:end] = torch.from_numpy(codecs.encode_bitnet(np.concatenate(codes)))
    return out


def write_directory(
    source: Checkpoint, path: Path, layout: Layout, dense_dtype: torch.dtype | None, seen: Callable[[str], None]
) -> None:
    """Writes config.json and model.safetensors into an empty directory.

    Args:
        source: what to write.
        path: the directory.
        layout: how ternary weights are stored.
        dense_dtype: of the tensors that are not ternary; None keeps theirs.
        seen: called with each name when it has been written.

    Raises:
        LossyError: what the layout cannot hold.
    """
    if source.config.attention_bias != source.config.attention_output_bias and not isinstance(layout, OwnLayout):
        raise LossyError(
            f"transformers has one attention_bias for q, k, v and o; the model has attention_bias="
            f"{source.config.attention_bias} and attention_output_bias={source.config.attention_output_bias}; "
            "write bittorch or GGUF"
        )
    ternary = [name for name in source.names if source.info(name).ternary]
    others = [name for name in source.names if not source.info(name).ternary]
    biases = {name: name.removesuffix("bias") + "weight" for name in others if name.endswith(".bias")}
    if dense_dtype is None and layout.one_dtype:
        rounds = isinstance(layout, BitNetLayout) and any(weight in ternary for weight in biases.values())
        dense_dtype = torch.float32 if rounds else _one_dtype(source, others)
    file = SafetensorsFile(path / "model.safetensors", source.names)
    try:
        # Floats first: packed rows may end at any byte, and what follows them would not be aligned.
        for name in others:
            if biases.get(name) not in ternary:
                file.add(name, source.dense(name, dense_dtype))
                seen(name)
        for name in ternary:
            weight = source.packed(name)
            module = name.removesuffix(".weight")
            for part, tensor in layout.parts(name, weight).items():
                file.add(f"{module}.{part}", tensor)
            if f"{module}.bias" in biases:
                file.add(f"{module}.bias", layout.bias(source.dense(f"{module}.bias", dense_dtype), weight))
                if isinstance(layout, OwnLayout):
                    layout.layers[module]["bias"] = True
                seen(f"{module}.bias")
            seen(name)
        file.finish(layout.metadata())
    finally:
        file.file.close()
    linear = [name for name in others if name.endswith("_proj.weight") or name == "lm_head.weight"]
    dense = sorted({name.removesuffix(".weight") for name in linear} | {"lm_head"} - set(_modules(ternary)))
    values = config_to_hf(source.config)
    if ternary:
        values["quantization_config"] = layout.quantization(dense)
    if dense_dtype is not None:
        values["dtype"] = str(dense_dtype).removeprefix("torch.")
    values["bittorch"] = note_of(source.config)
    (path / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _one_dtype(source: Checkpoint, names: list[str]) -> torch.dtype:
    """That of all these tensors; else bfloat16 where it holds every value exactly, else float32."""
    kinds = {source.info(name).type for name in names}
    if len(kinds) == 1 and (kind := kinds.pop()) in DTYPES:
        return DTYPES[kind]
    for name in sorted(names, key=lambda name: source.info(name).bytes):  # the embedding last
        exact = _holds(torch.bfloat16, source.dense(name))
        source.release(name)
        if not exact:
            return torch.float32
    return torch.bfloat16


def _holds(dtype: torch.dtype, values: Tensor) -> bool:
    flat = values.reshape(-1)
    return all(bool((flat[a:b] == flat[a:b].to(dtype)).all()) for a, b in chunks(len(flat), 1))


def _modules(names: list[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in names]
