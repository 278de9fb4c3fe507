"""GGUF files as gguf-py writes them, of values given in transformers' order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bittorch.models import architectures
from bittorch.models.architectures.base import GGUF_LAYER
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.hadamard import Hadamard
from bittorch.models.io import codecs
from bittorch.models.io.gguf_names import gguf_name
from tests.models.io.tiny import random_scale

TYPE = gguf.GGMLQuantizationType
NO_TOKENS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def dense_values(config: ModelConfig, kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {}
    for seed, (name, shape) in enumerate(tensor_shapes(config).items()):
        if name.endswith("_proj.weight") and kind.startswith("TQ"):
            scale = random_scale("tensor", *shape, seed).numpy()
            values[name] = rng.integers(-1, 2, shape).astype(np.float32) * scale
        else:
            values[name] = rng.standard_normal(shape).astype(np.float32)
    return values


def stacked(dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values, with the weights of a layer's experts as one array, as llama.cpp's converter writes them."""
    out: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for name, value in dense.items():
        module, experts, rest = name.partition(".experts.")
        if not experts:
            out[name] = value
            continue
        number, _, part = rest.partition(".")
        parts.setdefault(f"{module}.experts.*.{part}", {})[int(number)] = value
    return {**out, **{name: np.stack([own[i] for i in range(len(own))]) for name, own in parts.items()}}


def sizes(arch: str, config: ModelConfig) -> dict[str, Any]:
    """The entries that a converter of llama.cpp writes of every model."""
    return {
        f"{arch}.context_length": config.max_positions,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_heads,
        f"{arch}.attention.head_count_kv": config.num_kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.freq_base": float(config.rope_theta),
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": 2,
    }


def add_entry(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """With the type that Python's value suggests."""
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        adders[type(value)](key, value)


def hadamard_entries(basis: Hadamard, names: Sequence[str], **changes: Any) -> dict[str, Any]:
    """Of a basis with signs, whose weights a file has by these names; other values where given, None leaves one out."""
    found = {
        "version": 1,
        "block_size": basis.block_size,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": list(basis.signs),
        "sign_values": [sign for own in basis.signs.values() for sign in own],
        "weight_names": list(names),
        "inverse_weight_names": ["token_embd.weight"],
        "gdn_v_grouped": False,
    }
    return {f"prism.hadamard.{key}": value for key, value in {**found, **changes}.items() if value is not None}


def write(
    path: Path,
    arch: str,
    config: ModelConfig,
    kind: str,
    dense: Mapping[str, np.ndarray],
    extra: Mapping[str, Any] | None = None,
    embedding: str = "F32",
    *,
    without: Collection[str] = (),
    raw: Mapping[str, tuple[int, np.ndarray]] | None = None,
    parts: int = 0,
) -> None:
    """A file by gguf-py; projections of type ``kind``, the rest float32.

    Args:
        path: of the file; of the first part it becomes ``name-00001-of-0000N.gguf``.
        arch: the architecture.
        config: sizes.
        kind: type of the projections.
        dense: values by canonical name.
        extra: entries, which replace others.
        embedding: type of the embedding.
        without: entries left out.
        raw: tensors by GGUF's name, with a type's id and bytes in rows.
        parts: tensors of each part; 0 for one file.
    """
    writer, names = gguf.GGUFWriter(path, arch, split_max_tensors=parts), architectures.by_gguf(arch)

    def own_name(name: str) -> str:
        return gguf_name(name, names.gguf_layer if names else GGUF_LAYER)

    for key, value in {**sizes(arch, config), **(extra or {})}.items():
        if key not in without:
            add_entry(writer, key, value)
    for name, value in stacked(dense).items():
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        if arch in ("llama", "minicpm") and heads:
            value = permuted(value, heads)
        linear = name.endswith("_proj.weight")
        if name == "model.embed_tokens.weight" and embedding != "F32":
            writer.add_tensor(own_name(name), gguf.quants.quantize(value, TYPE[embedding]), raw_dtype=TYPE[embedding])
        elif linear and kind == "PQ2_0":
            codes, scale = value.reshape(-1, 128), np.abs(value).max().astype(np.float16)
            blocks = codecs.encode_q2_0(np.rint(codes / scale).astype(np.int8), np.full(len(codes), scale))
            writer.add_tensor_info(own_name(name), value.shape, np.dtype(np.float16), blocks.nbytes, raw_dtype=142)
            writer.tensors[-1][own_name(name)].tensor = blocks
        elif linear and kind not in ("F32", "F16"):
            writer.add_tensor(own_name(name), gguf.quants.quantize(value, TYPE[kind]), raw_dtype=TYPE[kind])
        else:
            writer.add_tensor(own_name(name), value.astype(np.float16) if linear and kind == "F16" else value)
    for name, (type_id, data) in (raw or {}).items():
        writer.add_tensor(name, data, raw_dtype=type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
