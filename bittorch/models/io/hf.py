"""Directories as transformers writes them: config.json and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bittorch.models.io.checkpoint import Checkpoint, StoredTensor, TensorInfo
from bittorch.models.io.errors import FormatError
from bittorch.models.io.hf_config import config_from_hf
from bittorch.models.io.mapped_file import MappedFile
from bittorch.models.io.safetensors_header import RawTensor, parse_json, read_header

INDEX = "model.safetensors.index.json"
# Names of the first BitNet checkpoints, and of today's.
RENAMED = {"self_attn.inner_attn_ln": "self_attn.attn_sub_norm", "mlp.ffn_layernorm": "mlp.ffn_sub_norm"}


class DenseTensor(StoredTensor):
    """Floats as they stand in a safetensors file."""

    def __init__(self, name: str, raw: RawTensor) -> None:
        super().__init__(TensorInfo(name, raw.dtype, raw.shape, raw.bytes))
        self.raw = raw

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self.raw.tensor()
        if dtype is None or dtype == tensor.dtype:
            return tensor
        tensor = tensor.to(dtype)
        self.raw.file.release(self.raw.offset, self.raw.bytes)
        return tensor


def open_directory(path: Path) -> Checkpoint:
    """A directory's checkpoint. Raises as `open_checkpoint`."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no config.json; name a checkpoint's directory or a .gguf file")
    values = parse_json(config_path.read_bytes(), str(config_path))
    raw, files, own = read_shards(path)
    tensors = {canonical_name(name): DenseTensor(canonical_name(name), entry) for name, entry in raw.items()}
    sub_norm = any(name.endswith("attn_sub_norm.weight") for name in tensors)
    config = config_from_hf(values, sub_norm, None, str(config_path))
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)  # some files store the tied head once more
    metadata = {"config": values, "safetensors": own}
    return Checkpoint(path, "safetensors", config, tensors, metadata, path, files)


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
