"""BitNet checkpoints of transformers: packed ternary weights, and master weights to be quantised.

``linear_class`` in quantization_config decides what ``weight_scale`` means; magnitudes do not tell:

=================  ==========================  =====================================
linear_class       weight                      bias
=================  ==========================  =====================================
``bitlinear``      ``code / weight_scale``     as stored
``autobitlinear``  ``code * weight_scale``     ``bias * weight_scale``
=================  ==========================  =====================================

``autobitlinear`` in mode ``online`` has dense master weights and quantises them in every forward pass by their mean.

Source: transformers 5.23, integrations/bitnet.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.architectures.base import INPUT_NORM
from bittorch.models.config import ModelConfig
from bittorch.models.io import choices, codecs
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, DirectoryFormat, Found, Layout, Parts, refuse_depth
from bittorch.models.io.errors import FormatError, LossyError
from bittorch.models.io.hf_config import note
from bittorch.models.io.safetensors_header import RawTensor
from bittorch.models.io.ternary_tensor import TernaryTensor, chunks
from bittorch.models.packed_weight import PackedWeight

FLOATS = ("F32", "F16", "BF16")
ABSMEAN_EPS = 1e-5


class PackedBitNet(TernaryTensor):
    """uint8 ``(N / 4, K)``: quarter i of the rows at bits 2 i and 2 i + 1, as ``code + 1``."""

    def __init__(self, name: str, weight: RawTensor, scale: RawTensor, divides: bool) -> None:
        rows, columns = weight.shape
        size = weight.bytes + scale.bytes
        super().__init__(TensorInfo(name, "bitnet", (4 * rows, columns), size, ternary=True), weight.file.path)
        self.weight, self.scale, self.divides = weight, scale, divides

    def decode(self, out: Bytes) -> Tensor:
        rows, columns = self.weight.shape
        data = self.weight.file.view(self.weight.offset, self.weight.bytes).reshape(rows, columns)
        codecs.decode_fields(data, columns, "bitnet", out)
        self.weight.file.release(self.weight.offset, self.weight.bytes)
        return multiplier(self.scale, self.divides, self.info.name)


class OnlineBitNet(TernaryTensor):
    """A dense master weight as ``autobitlinear`` quantises it: ``round(w / mean|w|)``, half to even, times the mean."""

    def __init__(self, name: str, weight: RawTensor) -> None:
        super().__init__(TensorInfo(name, f"{weight.dtype} (online)", weight.shape, weight.bytes, ternary=True))
        self.weight = weight

    def decode(self, out: Bytes) -> Tensor:
        master = self.weight.tensor()
        rows, columns = self.info.shape
        spans = list(chunks(rows, columns))
        total = sum(float(master[begin:end].abs().sum(dtype=torch.float64)) for begin, end in spans)
        if not np.isfinite(total):
            raise FormatError(f"{self.info.name} holds NaN or Inf; the file is damaged")
        mean = torch.tensor([total / max(1, rows * columns)], dtype=torch.float32).clamp_(min=ABSMEAN_EPS)
        inverse = 1.0 / mean
        for begin, end in spans:
            codes = (master[begin:end].float() * inverse).round_().clamp_(-1, 1).to(torch.int8)
            out[begin:end] = ops.ternary_pack(codes).numpy()
        self.weight.file.release(self.weight.offset, self.weight.bytes)
        return 1.0 / inverse


class UnpackedBitNet(TernaryTensor):
    """Trits stored one by one as floats, with a ``weight_scale``."""

    def __init__(self, name: str, weight: RawTensor, scale: RawTensor) -> None:
        size = weight.bytes + scale.bytes
        super().__init__(TensorInfo(name, f"{weight.dtype} (trits)", weight.shape, size, ternary=True))
        self.weight, self.scale = weight, scale

    def decode(self, out: Bytes) -> Tensor:
        values = self.weight.tensor()
        for begin, end in chunks(*self.info.shape):
            part = values[begin:end]
            trits = part.clamp(-1, 1).round().nan_to_num(0)
            if not torch.equal(trits, part):
                raise FormatError(
                    f"{self.info.name} has a weight_scale, so its weights must be -1, 0 or 1; they are not"
                )
            out[begin:end] = ops.ternary_pack(trits.to(torch.int8)).numpy()
        self.weight.file.release(self.weight.offset, self.weight.bytes)
        return multiplier(self.scale, False, self.info.name)


class ScaledBias(DenseTensor):
    """A bias that is multiplied by the weight's scale."""

    def __init__(self, name: str, raw: RawTensor, scale: RawTensor) -> None:
        super().__init__(name, raw)
        self.scale = scale

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return (self.raw.tensor().float() * multiplier(self.scale, False, self.info.name)).to(dtype or torch.float32)

    def copied(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.dense(dtype)


def multiplier(scale: RawTensor, divides: bool, name: str) -> Tensor:
    """A ``weight_scale`` as the float32 factor of the codes, shape ``[1]``."""
    if scale.dtype not in FLOATS or scale.shape not in ((), (1,)):
        raise FormatError(f"weight_scale of {name} must be one float, got {scale.dtype} {scale.shape}")
    value = scale.tensor().float().reshape(1)
    if not bool(torch.isfinite(value)) or (divides and float(value) == 0):
        raise FormatError(f"weight_scale of {name} is {float(value)}; the file is damaged")
    return 1.0 / value if divides else value.clone()


def read_bitnet(raw: Mapping[str, RawTensor], quantization: Mapping[str, Any], what: str) -> dict[str, StoredTensor]:
    """The tensors of a BitNet checkpoint by canonical name.

    Raises:
        FormatError: options that are not read, a weight without its scale or a scale without its weight, other shapes.
    """
    linear_class = quantization.get("linear_class", "bitlinear")
    if "linear_class" not in quantization:
        choices.note(
            "hf-weight-scale",
            f"{what}: quantization_config has no linear_class, so weight_scale divides (bitlinear), as in transformers",
        )
    mode = quantization.get("quantization_mode", "offline")
    if linear_class not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise FormatError(
            f"{what}: linear_class {linear_class!r:.40} with quantization_mode {mode!r:.40} is not read; known are "
            "bitlinear and autobitlinear, offline and online"
        )
    auto, online = linear_class == "autobitlinear", linear_class == "autobitlinear" and mode == "online"
    skipped = _skipped(quantization, what) if online else ()
    tensors: dict[str, StoredTensor] = {}
    for name, entry in raw.items():
        module, _, kind = name.rpartition(".")
        scale = raw.get(f"{module}.weight_scale")
        if kind == "weight_scale":
            if f"{module}.weight" not in raw:
                raise FormatError(f"{what} has {name} but no {module}.weight")
        elif kind == "weight" and entry.dtype == "U8":
            tensors[name] = _packed(name, entry, scale, auto, online, what)
        elif kind == "weight" and scale is not None and auto and not online and len(entry.shape) == 2:
            tensors[name] = UnpackedBitNet(name, entry, scale)
        elif kind == "weight" and online and len(entry.shape) == 2 and _is_linear(module, skipped):
            tensors[name] = OnlineBitNet(name, entry)
        elif kind == "bias" and scale is not None and auto:
            tensors[name] = ScaledBias(name, entry, scale)
        else:
            tensors[name] = DenseTensor(name, entry)
    return tensors


def _packed(name: str, weight: RawTensor, scale: RawTensor | None, auto: bool, online: bool, what: str) -> PackedBitNet:
    if scale is None:
        raise FormatError(f"{what} has packed {name}, but no {name}_scale; without it the weights mean nothing")
    if online:
        raise FormatError(f"{what} says quantization_mode online, but {name} is packed; one of the two is wrong")
    if len(weight.shape) != 2:
        raise FormatError(f"{what}: packed {name} must have 2 dimensions, got {weight.shape}")
    return PackedBitNet(name, weight, scale, divides=not auto)


def _skipped(quantization: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Modules that stay dense; the head where nothing is said."""
    patterns = quantization.get("modules_to_not_convert")
    if patterns is None:
        return ("lm_head",)
    if not isinstance(patterns, list) or not all(isinstance(p, str) and re.fullmatch(r"[\w.-]+", p) for p in patterns):
        raise FormatError(f"{what}: modules_to_not_convert must list names of modules, got {patterns!r:.200}")
    return tuple(patterns)


def _is_linear(module: str, skipped: tuple[str, ...]) -> bool:
    linear = module == "lm_head" or module.endswith("_proj")
    return linear and not any(f"{module}.".startswith(f"{name}.") or module.endswith(name) for name in skipped)


class BitNetLayout(Layout):
    """Packed as transformers packs it, with multipliers: ``autobitlinear``, offline."""

    rounds_biases = True

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

    def bias(self, module: str, bias: Tensor, weight: PackedWeight) -> Tensor:
        if not self.allow_lossy:
            raise LossyError("autobitlinear multiplies a bias by the weight's scale; dividing by it first rounds")
        return (bias.float() / weight.scale).to(bias.dtype)

    def quantization(self, dense: list[str]) -> dict[str, Any]:
        mode = {"linear_class": "autobitlinear", "quantization_mode": "offline"}
        return {"quant_method": "bitnet", **mode, "modules_to_not_convert": dense}


def _encode_bitnet(weight: PackedWeight) -> Tensor:
    packed = weight.weight_packed.numpy()
    rows = len(packed) // 4
    out = torch.empty((rows, weight.in_features), dtype=torch.uint8)
    for begin, end in chunks(rows, 4 * weight.in_features):
        quarters = [packed[i * rows + begin : i * rows + end] for i in range(4)]
        codes = [codecs.unpack(quarter, weight.in_features) for quarter in quarters]
        out[begin:end] = torch.from_numpy(codecs.encode_bitnet(np.concatenate(codes)))
    return out


class BitNet(DirectoryFormat):
    """See `DirectoryFormat`."""

    methods = ("bitnet",)
    targets = ("bitnet",)

    def matches(self, directory: Directory) -> bool:
        return super().matches(directory) or _says_nothing(directory)

    def read(self, directory: Directory) -> Found:
        quantization, raw, values = directory.quantization, directory.raw, directory.values
        if quantization is None:
            quantization = FIRST
        elif quantization.get("use_rms_norm"):
            raw = {name.replace(".rms_norm.weight", ".norm.weight"): entry for name, entry in raw.items()}
            if INPUT_NORM not in raw:
                raise FormatError(
                    f"{directory.path} says use_rms_norm, but has no norm of the input of q_proj in layer 0"
                )
            own = {**note(values), "input_norm_eps": quantization.get("rms_norm_eps", 1e-6)}
            values = {**values, "bittorch": own}
        online = quantization.get("quantization_mode") == "online"
        tensors = read_bitnet(raw, quantization, str(directory.path))
        return Found("bitnet-online" if online else "bitnet", tensors, 8, values)

    def layout(self, to: str, source: Checkpoint, allow_lossy: bool) -> BitNetLayout:
        return BitNetLayout(source.config, allow_lossy)


# What models with code of their own do, and do not say.
FIRST = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def _says_nothing(directory: Directory) -> bool:
    """Whether master weights are to be quantised without a quantization_config.

    The first BitNet models say so by weight_bits, and bitnet-embedding by norms of what each matrix multiplies.
    """
    if directory.quantization is not None:
        return False
    if directory.values.get("weight_bits") == 1:
        return True
    if INPUT_NORM not in directory.raw or "bittorch" in directory.values:
        return False
    choices.warn(
        "hf-input-norms",
        f"{directory.path} has norms of the input of each matrix and no quantization_config: its weights are quantised "
        "by their mean, and activations to 8 bits, as of BitNet models with code of their own; "
        "a quantization_config with quant_method bitnet, linear_class autobitlinear and quantization_mode online "
        "silences this",
    )
    return True


FORMAT = BitNet()
