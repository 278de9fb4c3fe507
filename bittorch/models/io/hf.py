"""Directories as transformers writes them: config.json and safetensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bittorch.models import architectures
from bittorch.models.config import EMBEDDING, HEAD, ModelConfig
from bittorch.models.io import choices
from bittorch.models.io.checkpoint import Checkpoint, StoredTensor
from bittorch.models.io.dense_tensor import DenseTensor
from bittorch.models.io.directory_format import Directory, Found
from bittorch.models.io.errors import FormatError
from bittorch.models.io.exact_ternary import recognised
from bittorch.models.io.formats import formats
from bittorch.models.io.hf_config import config_from_hf, num_experts, text_values
from bittorch.models.io.mapped_file import MappedFile
from bittorch.models.io.pooling import stored_pooling
from bittorch.models.io.safetensors_header import RawTensor, parse_json, read_header
from bittorch.models.io.stacks import cut_bytes, unstacked
from bittorch.models.io.ternary_tensor import chunks
from bittorch.models.io.tokenizer_files import end_tokens

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
IGNORED = ("rotary_emb.inv_freq",)  # follows from the configuration; old files store it
TEXT_PART = "model.language_model."  # of models that see images too
# Names of the first BitNet checkpoints, of Maple's and of MLX's, and of transformers' today.
RENAMED = {
    "self_attn.inner_attn_ln": "self_attn.attn_sub_norm",
    "mlp.ffn_layernorm": "mlp.ffn_sub_norm",
    "word_embeddings": "embed_tokens",
    "mlp.switch_mlp": "mlp.experts.*",
}


def open_directory(path: Path, ternary: str = "auto", override: Mapping[str, Any] | None = None) -> Checkpoint:
    """A directory's checkpoint. Raises as `open_checkpoint`."""
    config_path = path / "config.json"
    if not config_path.is_file():
        hub = sorted(path.glob("snapshots/*/config.json"))  # a repository in the cache of huggingface_hub
        where = f"{hub[-1].parent}" if hub else "a checkpoint's directory or a .gguf file"
        raise FileNotFoundError(f"{path} has no config.json; name {where}")
    what = str(config_path)
    values = text_values(parse_json(config_path.read_bytes(), what))
    stored, files, own = read_shards(path)
    stored = _used(stored, values, what)
    prefix = "" if "bittorch" in own else _missing_prefix(stored)
    raw = {canonical_name(name, prefix): entry for name, entry in stored.items() if not name.endswith(IGNORED)}
    if len(raw) < len({name for name in stored if not name.endswith(IGNORED)}):
        raise FormatError(f"{path} has tensors under an old and under a new name at once")
    raw = unstacked(raw, cut_bytes, str(path), num_experts(values))
    quantization = values.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise FormatError(f"{what}: quantization_config must be an object with quant_method, got {quantization!r:.100}")
    found = _read(Directory(path, raw, values, quantization, own), what)
    said, tensors = found.values or values, found.tensors
    given = override or {}
    config = config_from_hf(said, tensors, found.activation_bits, what, given)
    if "eos_token_ids" not in given:
        ends = dict.fromkeys([*config.eos_token_ids, *end_tokens(path)])
        config = dataclasses.replace(config, eos_token_ids=tuple(ends))
    if not config.pooling:
        config = dataclasses.replace(config, pooling=given.get("pooling", stored_pooling(path)))
    config = _tied(tensors, config, what, "tie_embeddings" in given)
    if found.format == "safetensors" or ternary == "require":  # what other formats have as floats is meant to be floats
        tensors = recognised(tensors, str(path), ternary)
    return Checkpoint(path, found.format, config, tensors, {"config": said, "safetensors": own}, path, files)


def _used(stored: dict[str, RawTensor], values: dict[str, Any], what: str) -> dict[str, RawTensor]:
    """The tensors without those of parts that the model has beside what is run here. Warns of these."""
    architecture = architectures.by_hf(values)
    if architecture is None or not (skipped := [name for name in stored if name.startswith(architecture.hf_skipped)]):
        return stored
    choices.warn(
        "skipped-parts",
        f"{what}: {len(skipped)} tensors are of parts that are not run, such as {skipped[0]}: they are left out, and "
        "are not written again",
    )
    return {name: entry for name, entry in stored.items() if not name.startswith(architecture.hf_skipped)}


def _read(directory: Directory, what: str) -> Found:
    """What the first format that knows the directory makes of it."""
    for format in formats():
        if format.matches(directory):
            return format.read(directory)
    method = (directory.quantization or {}).get("quant_method")
    known = ", ".join(method for format in formats() for method in format.methods)
    raise FormatError(f"{what}: quant_method {method!r:.100} is not read; known are {known}")


def _tied(tensors: dict[str, StoredTensor], config: ModelConfig, what: str, sure: bool) -> ModelConfig:
    """Embedding and head of a model that says they are one, as transformers takes them when the files have two.

    Where the caller said so, which is ``sure``, a stored head is left out.
    """
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if not config.tie_embeddings or head is None:
        return config
    if embedding is None and isinstance(head, DenseTensor):  # stored under its other name
        tensors[EMBEDDING] = DenseTensor(EMBEDDING, head.raw)
    elif embedding is not None and not sure and not _equal(embedding, head):
        choices.warn(
            "hf-tied-head",
            f"{what} says tie_word_embeddings true, but the stored {HEAD} differs from {EMBEDDING}: the stored head is "
            "taken, as transformers does; say tie_word_embeddings false to silence this, or remove the head",
        )
        return dataclasses.replace(config, tie_embeddings=False)
    del tensors[HEAD]
    return config


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether both have the same values; packed ones never count as equal."""
    if one.info.ternary or other.info.ternary or one.info.shape != other.info.shape:
        return False
    rows, columns = one.info.shape if len(one.info.shape) == 2 else (1, 1)
    first, second = one.dense().reshape(rows, -1), other.dense().reshape(rows, -1)
    same = all(bool((first[a:b].float() == second[a:b].float()).all()) for a, b in chunks(rows, columns))
    one.release()
    other.release()
    return same


def canonical_name(name: str, prefix: str = "") -> str:
    """The name that today's transformers uses; ``prefix`` goes before all but the head's."""
    name = name if name.startswith("lm_head.") else prefix + name
    name = "model." + name.removeprefix(TEXT_PART) if name.startswith(TEXT_PART) else name
    for old, new in RENAMED.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _missing_prefix(names: Iterable[str]) -> str:
    """What transformers puts before the names of a base model, which was saved without its head."""
    beginnings = {name.partition(".")[0] for name in names}
    return "model." if "embed_tokens" in beginnings and "model" not in beginnings else ""


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
        if pickles := sorted(file.name for file in path.iterdir() if file.suffix in PICKLES):
            raise FormatError(
                f"{path} has its weights as {', '.join(pickles[:5])} alone: pickle runs code of the file when it is "
                "loaded, and is not supported; where you trust it, write safetensors once: "
                "transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder)"
            )
        raise FormatError(f"{path} has neither model.safetensors nor {INDEX}, but {len(single)} other such files")
    weight_map: Any = parse_json((path / INDEX).read_bytes(), str(path / INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path / INDEX} has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise FormatError(f"{path / INDEX} names the shard {shard!r:.100}; shards must lie in the same directory")
    return sorted(set(weight_map.values())), weight_map
