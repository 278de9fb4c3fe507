"""Directories that transformers wrote of a model in training: full-precision masters, ternary as config.json records.

`bittorch.utils.transformers_config` writes the record. The weights are quantised as the layers do it, so codes and
scales are those of the trained model in ``eval()``, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bittorch.models.io.checkpoint import StoredTensor, TensorInfo
from bittorch.models.io.codecs import Bytes
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, DirectoryFormat, Found
from bittorch.models.io.errors import FormatError
from bittorch.models.io.safetensors_header import RawTensor
from bittorch.models.io.ternary_tensor import TernaryTensor
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer, learned
from bittorch.quant.ternary import check_finite, no_trits
from bittorch.utils.transformers_config import METHOD, STORED, VERSION, is_sample, read_record, sample

FLOATS = ("F32", "F16", "BF16")
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"


class Master(TernaryTensor):
    """A master weight, and the step of a learned method."""

    def __init__(self, name: str, weight: RawTensor, step: RawTensor | None, config: TernaryQuantConfig) -> None:
        kind = f"{weight.dtype} (master of {config.method})"
        size = weight.bytes + (step.bytes if step else 0)
        super().__init__(TensorInfo(name, kind, weight.shape, size, True, no_trits(config.activation_bits, name)))
        self.weight, self.step, self.config = weight, step, config

    def decode(self, out: Bytes) -> Tensor:
        weight = self.weight.tensor()
        try:
            if self.step is None:
                packed, scale = TernaryQuantizer(self.config).quantize_packed(weight)
            else:
                packed, scale = learned.quantize_packed(weight, self.step.tensor(), self.config.method)
                check_finite(weight, scale)
        except (ValueError, RuntimeError) as error:
            raise FormatError(f"{self.weight.file.path}: {self.info.name}: {error}") from None
        out[:] = packed.numpy()
        self.weight.file.release(self.weight.offset, self.weight.bytes)
        return scale


def read_masters(
    raw: Mapping[str, RawTensor], record: Mapping[str, Any], what: str
) -> tuple[dict[str, StoredTensor], int | None]:
    """The tensors by canonical name, and the activation_bits of most of the model: of its first ternary layer.

    Raises:
        FormatError: another version, layers without a name or a weight, weights that are not those of the record.
    """
    if (record.get("stored"), record.get("version")) != (STORED, VERSION):
        raise FormatError(
            f"{what}: quantization_config of bittorch has stored {record.get('stored')!r:.40} and version "
            f"{record.get('version')!r:.40}; this bittorch reads {STORED!r} and {VERSION}"
        )
    if unnamed := record.get("unnamed"):
        raise FormatError(
            f"{what} holds masters of {unnamed!r:.40} ternary layers whose names it does not record, because quantize_ "
            "was given parts of the model. Call quantize_ on the whole model, with filter_fn; or write the trained "
            "model with bittorch.models.LanguageModel.from_transformers(model).save_pretrained(path)"
        )
    layers = _layers(record, what)
    tensors: dict[str, StoredTensor] = {name: DenseTensor(name, entry) for name, entry in raw.items()}
    for module, described in layers.items():
        weight = raw.get(f"{module}.weight", raw.get(f"{EMBEDDING}.weight") if module == HEAD else None)
        if weight is None or weight.dtype not in FLOATS or len(weight.shape) != 2:
            found = "has no such weight" if weight is None else f"has {weight.dtype} {weight.shape}"
            raise FormatError(f"{what} records {module!r:.100} as a ternary layer with a floating weight, but {found}")
        config = _config_of(module, weight, described, what)
        step = tensors.pop(f"{module}.weight_scale", None)
        if config.learned != (step is not None):
            need = "needs" if config.learned else "does not have"
            raise FormatError(f"{what}: method {config.method!r} of {module} {need} a weight_scale")
        tensors[f"{module}.weight"] = Master(
            f"{module}.weight", weight, raw[f"{module}.weight_scale"] if config.learned else None, config
        )
    bits = [no_trits(tensor.config.activation_bits, what) for tensor in tensors.values() if isinstance(tensor, Master)]
    return tensors, bits[0] if bits else None


def _layers(record: Mapping[str, Any], what: str) -> dict[str, list[tuple[TernaryQuantConfig, list[float]]]]:
    """Configurations and samples by canonical name; several where models share a configuration."""
    found: dict[str, list[tuple[TernaryQuantConfig, list[float]]]] = {}
    try:
        layers = read_record(record)
    except ValueError as error:
        raise FormatError(f"{what}: {error}") from None
    for name, config, numbers in layers:
        canonical = name if name.startswith(("model.", HEAD)) else f"model.{name}"  # saved without its head
        found.setdefault(canonical, []).append((config, numbers))
    return found


def _config_of(
    module: str, weight: RawTensor, described: list[tuple[TernaryQuantConfig, list[float]]], what: str
) -> TernaryQuantConfig:
    """The configuration whose sample is that of the stored weight."""
    values = weight.tensor()
    stored = sample(values)
    for config, numbers in described:
        if is_sample(numbers, stored, values.dtype):
            if not config.packs:
                raise FormatError(
                    f"{what}: {module} is of method {config.method!r}, whose two scales no packed row holds"
                )
            return config
    raise FormatError(
        f"{what} records {module} as ternary, but its weight is not that of the ternary layer: another model was saved "
        "with the configuration of a ternary one, or the layer was replaced. Save the trained model again, or remove "
        "quantization_config from config.json to load the weights dense"
    )


class Masters(DirectoryFormat):
    """See `DirectoryFormat`."""

    def matches(self, directory: Directory) -> bool:
        record = directory.quantization or {}
        return record.get("quant_method") == METHOD and "stored" in record

    def read(self, directory: Directory) -> Found:
        """Norms are those of a model that runs in transformers; a tied weight is ternary in the head alone."""
        assert directory.quantization is not None
        tensors, bits = read_masters(directory.raw, directory.quantization, str(directory.path))
        head = tensors.get(f"{HEAD}.weight")
        tied = bool(directory.values.get("tie_word_embeddings")) and not (head is not None and head.info.ternary)
        values = {**directory.values, "bittorch": {"fuse_norms": False}, "tie_word_embeddings": tied}
        return Found("masters", tensors, bits, values)


FORMAT = Masters()
