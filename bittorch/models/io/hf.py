"""Directories as transformers writes them: config.json and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bittorch.models.io.checkpoint import Checkpoint, StoredTensor
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.errors import FormatError
from bittorch.models.io.hf_bitnet import read_bitnet
from bittorch.models.io.hf_compressed import activation_bits as activation_bits_of
from bittorch.models.io.hf_compressed import read_compressed
from bittorch.models.io.hf_config import config_from_hf
from bittorch.models.io.mapped_file import MappedFile
from bittorch.models.io.own import read_own
from bittorch.models.io.safetensors_header import RawTensor, parse_json, read_header

INDEX = "model.safetensors.index.json"
IGNORED = ("rotary_emb.inv_freq",)  # follows from the configuration; old files store it
# Names of the first BitNet checkpoints, and of today's.
RENAMED = {"self_attn.inner_attn_ln": "self_attn.attn_sub_norm", "mlp.ffn_layernorm": "mlp.ffn_sub_norm"}


def open_directory(path: Path) -> Checkpoint:
    """A directory's checkpoint. Raises as `open_checkpoint`."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no config.json; name a checkpoint's directory or a .gguf file")
    what = str(config_path)
    values = parse_json(config_path.read_bytes(), what)
    stored, files, own = read_shards(path)
    raw = {canonical_name(name): entry for name, entry in stored.items() if not name.endswith(IGNORED)}
    if len(raw) < len({name for name in stored if not name.endswith(IGNORED)}):
        raise FormatError(f"{path} has tensors under an old and under a new name at once")
    format, tensors, activation_bits = _read(raw, values, own, path)
    sub_norm = any(name.endswith("attn_sub_norm.weight") for name in tensors)
    config = config_from_hf(values, sub_norm, activation_bits, what)
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)  # some files store the tied head once more
    return Checkpoint(path, format, config, tensors, {"config": values, "safetensors": own}, path, files)


def _read(
    raw: Mapping[str, RawTensor], values: Mapping[str, Any], own: Mapping[str, str], path: Path
) -> tuple[str, dict[str, StoredTensor], int | None]:
    """Format, tensors and activation_bits by the quantisation method that config.json names."""
    what = str(path)
    note = values.get("bittorch")  # what this library adds to a config.json
    recorded = note.get("activation_bits") if isinstance(note, dict) else None
    quantization = values.get("quantization_config")
    if quantization is None and values.get("weight_bits") == 1:  # the first BitNet models, which had code of their own
        quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    if quantization is None:
        return "safetensors", {name: DenseTensor(name, entry) for name, entry in raw.items()}, None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method == "bitnet":
        online = quantization.get("quantization_mode") == "online"
        return "bitnet-online" if online else "bitnet", read_bitnet(raw, quantization, what), 8
    if method == "compressed-tensors":
        return (
            "compressed-tensors",
            read_compressed(raw, quantization, what),
            recorded or activation_bits_of(quantization),
        )
    if method == "bittorch":
        return "bittorch", read_own(raw, own, what), recorded
    raise FormatError(
        f"{path / 'config.json'}: quant_method {method!r:.100} is not read; known are bitnet, compressed-tensors and "
        "bittorch"
    )


def canonical_name(name: str) -> str:
    """The name that today's transformers uses."""
    for old, new in RENAMED.items():
        if f".{old}." in name:
            return name.replace(old, new)
    return name


def read_shards(path: Path) -> tuple[dict[str, RawTensor], list[MappedFile], dict[str, str]]:
    """Every tensor of a directory by its name in the files, the files, and their joint metadata."""
    names, weight_map = _shard_names(path)
    if absent := [name for name in names if not (path / name).is_file()]:
        raise FormatError(f"{path} lacks {len(absent)} of its {len(names)} shards: {', '.join(absent[:10])}")
    tensors: dict[str, RawTensor] = {}
    metadata: dict[str, str] = {}
    files = []
    for name in names:
        file = MappedFile(path / name)
        files.append(file)
        found, own = read_header(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise FormatError(f"{path / name} and {tensors[twice[0]].file.path.name} both have tensor {twice[0]!r}")
        tensors |= found
        metadata |= own
    if lost := [key for key, shard in weight_map.items() if key not in tensors or tensors[key].file.path.name != shard]:
        raise FormatError(
            f"{path / INDEX} places {len(lost)} tensors in shards that do not have them, first {lost[0]!r} in "
            f"{weight_map[lost[0]]!r}"
        )
    return tensors, files, metadata


def _shard_names(path: Path) -> tuple[list[str], dict[str, str]]:
    if (path / "model.safetensors").is_file():
        return ["model.safetensors"], {}
    if not (path / INDEX).is_file():
        single = sorted(file.name for file in path.glob("*.safetensors"))
        if len(single) == 1:
            return single, {}
        raise FormatError(f"{path} has neither model.safetensors nor {INDEX}, but {len(single)} other such files")
    weight_map: Any = parse_json((path / INDEX).read_bytes(), str(path / INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path / INDEX} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise FormatError(f"{path / INDEX} names the shard {shard!r:.100}; shards must lie in the same directory")
    return sorted(set(weight_map.values())), weight_map
