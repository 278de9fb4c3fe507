"""What GGUF calls a model's tensors and sizes, and what `ModelConfig` calls them."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from bittorch.models import architectures
from bittorch.models.architectures.base import (
    GGUF_LAYER,
    GGUF_WHOLE,
    INPUT_NORM,
    REQUIRED,
    SUB_NORM,
    Architecture,
    keys_of,
    read_entries,
    with_keys,
    written_entries,
)
from bittorch.models.config import EMBEDDING, HEAD, LAYER_TYPES, POOLINGS, PROJECTIONS, ModelConfig
from bittorch.models.io import choices
from bittorch.models.io.errors import FormatError
from bittorch.models.io.gguf_entries import check_entries
from bittorch.models.io.gguf_hadamard import hadamard_entries
from bittorch.models.io.gguf_header import GGUFTensor
from bittorch.models.io.gguf_rope import rope_entries, rope_scaling
from bittorch.models.io.override import check_used
from bittorch.models.io.stacks import stacked_name

# Entries with true for each layer of a kind.
LAYER_ENTRIES = {"attention.sliding_window_pattern": LAYER_TYPES[0], "attention.recurrent_layers": LAYER_TYPES[2]}

# Of fields that are no `Entry`.
KEYS = {
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rotary_dim": "rope.dimension_count",
}


def canonical_name(name: str, layer: Mapping[str, str] = GGUF_LAYER) -> str | None:
    """``blk.3.attn_q.weight`` as ``model.layers.3.self_attn.q_proj.weight``; None for what has no such name.

    Args:
        name: in the file.
        layer: the `gguf_layer` of the architecture: names without ``.weight`` and ``.bias``, or whole ones.
    """
    stem, _, kind = name.rpartition(".")
    if stem in GGUF_WHOLE:
        return f"{GGUF_WHOLE[stem]}.{kind}"
    if (whole := re.fullmatch(r"blk\.(\d{1,6})\.([\w.]+)", name)) and whole[2] in layer:
        return f"model.layers.{int(whole[1])}.{layer[whole[2]]}"
    found = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)", stem)
    if not found or found[2] not in layer:
        return None
    return f"model.layers.{int(found[1])}.{layer[found[2]]}.{kind}"


def gguf_name(name: str, layer: Mapping[str, str] = GGUF_LAYER) -> str:
    """The inverse of `canonical_name`; of an expert's weight, the name of the stack that it is in."""
    stem, _, kind = stacked_name(name).rpartition(".")
    whole = {canonical: own for own, canonical in GGUF_WHOLE.items()}
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    own = {canonical: name for name, canonical in layer.items()}
    number, _, part = name.removeprefix("model.layers.").partition(".")
    if part in own:
        return f"blk.{number}.{own[part]}"
    number, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{own[part]}.{kind}"


def architecture_of(entries: Mapping[str, Any], what: str) -> Architecture:
    """What a file says it is. Raises FormatError."""
    arch = entries.get("general.architecture")
    architecture = architectures.by_gguf(arch)
    if architecture is None:
        known = ", ".join(architectures.gguf_names())
        raise FormatError(f"{what} is of architecture {arch!r:.100}; known are {known}")
    return architecture


class _Source(NamedTuple):
    """A file's entries and tensors, and the fields that count in their place."""

    architecture: Architecture
    arch: str
    entries: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    own: Mapping[str, Any]
    what: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value of an entry of the architecture. Raises FormatError."""
        name = f"{self.arch}.{key}"
        value = self.entries.get(name, self.architecture.gguf_defaults.get(key, default))
        if value is REQUIRED:
            raise FormatError(f"{self.what} has no entry {name}")
        if not isinstance(value, list):
            return value
        if key in LAYER_ENTRIES:
            return _layer_types(name, LAYER_ENTRIES[key], value, self.what)
        return _of_all_layers(name, value, self.entries.get(f"{self.arch}.block_count"), self.what)


def config_from_gguf(
    entries: Mapping[str, Any],
    tensors: Mapping[str, GGUFTensor],
    factors: Mapping[str, tuple[float, ...]],
    what: str,
    override: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The model that a GGUF file's entries and tensors describe.

    Args:
        entries: of the header.
        tensors: by canonical name.
        factors: values of those `ROPE_TENSORS` that the file has.
        what: names the file in errors.
        override: fields in the place of what the file says.

    Warns:
        CheckpointWarning: see `bittorch.models.io.choices`.

    Raises:
        FormatError: an architecture, activation or rope type that is not read, missing or impossible sizes.
        ValueError: a field of ``override`` that the architecture does not have.
    """
    architecture, arch = architecture_of(entries, what), entries["general.architecture"]
    longrope = entries.get(f"{arch}.rope.scaling.type") == "longrope"
    also = [*(entry.gguf for entry in architecture.entries), *architecture.gguf_read]
    also += ["rope.scaling.attn_factor"] * longrope
    check_entries(entries, arch, what, also)
    own = override or {}
    check_used(own, architecture.of_tensors(tensors), what)
    if "rope_scaling" in own:  # the file's may be unknown
        entries = {key: value for key, value in entries.items() if not key.startswith(f"{arch}.rope.scal")}
        factors = {}
    embedding = tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"{what} has no tensor token_embd.weight of two dimensions")
    source = _Source(architecture, arch, entries, tensors, own, what)
    try:
        said = dict(
            **_attention(source),
            **_fields(source),
            **_rules(source),
            vocab_size=embedding.shape[0],
            rope_scaling=rope_scaling(source.get, factors, what),
        )
        return ModelConfig(**{**said, **own})
    except FormatError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        keys = {field: f"{arch}.{key}" for field, key in {**keys_of(architecture, "gguf"), **KEYS}.items()}
        raise FormatError(f"{what}: {with_keys(str(error), keys, own)}") from None


def _attention(source: _Source) -> dict[str, Any]:
    """Sizes of heads and what is rotated of them. Raises FormatError."""
    get, what = source.get, source.what
    hidden, heads = get("embedding_length", REQUIRED), get("attention.head_count", REQUIRED)
    for key, value in (("attention.head_count", heads), ("embedding_length", hidden)):
        if type(value) is not int or value < 1:
            raise FormatError(f"{what} has {source.arch}.{key} {value!r:.40}; it must be a positive integer")
    head_dim = get("attention.key_length", hidden // heads)
    rotated = get("rope.dimension_count", head_dim)
    if rotated != head_dim and (not source.architecture.partial_rotation or rotated == 0):
        raise FormatError(f"{what} rotates {rotated} of {head_dim} dimensions of a head, which is not supported")
    if (value_dim := get("attention.value_length", head_dim)) != head_dim:
        raise FormatError(f"{what} has keys of {head_dim} and values of {value_dim} channels, which must be equal")
    return {
        "num_kv_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rotary_dim": 0 if rotated == head_dim else rotated,
        "rope_theta": get("rope.freq_base", 10000.0),
    }


def _rules(source: _Source) -> dict[str, Any]:
    """What is no size: norms, activations, ends of texts, and what the tensors alone say."""
    architecture, arch, entries, tensors, own, what = source
    eps = source.get("attention.layer_norm_rms_epsilon", own.get("rms_norm_eps", REQUIRED))
    eos = entries.get("tokenizer.ggml.eos_token_id")
    trained = architecture.activation_bits
    return {
        "architecture": architecture.of_tensors(tensors),
        "rms_norm_eps": eps,
        "input_norm_eps": eps if INPUT_NORM in tensors else 0.0,
        "norms_from_one": architecture.norms_from_one,
        "fuse_norms": entries.get("bittorch.fuse_norms", True),
        "hidden_act": own.get("hidden_act") or _activation(architecture.gguf[arch], source.get, tensors, what),
        "tie_embeddings": HEAD not in tensors,
        "biases": tuple(name for name in PROJECTIONS if _has_bias(tensors, name)),
        "activation_bits": None if "activation_bits" in own else _activation_bits(entries, trained, tensors, what),
        "pooling": _pooling(source.get("pooling_type", 0), arch, what),
        "bos_token_id": entries.get("bittorch.bos_token_id", entries.get("tokenizer.ggml.bos_token_id")),
        "eos_token_ids": tuple(entries.get("bittorch.eos_token_ids", [] if eos is None else [eos])),
    }


def _fields(source: _Source) -> dict[str, Any]:
    """Of the entries of every architecture, and of this one's; older files may lack some of these."""
    architecture = source.architecture
    stored = read_entries(architecture, "gguf", source.get, source.own)
    found = architecture.of_gguf(stored, source.get)
    if lacking := [entry for entry in architecture.entries if entry.gguf and stored[entry.field] is None]:
        taken = ", ".join(f"{source.arch}.{entry.gguf} = {found[entry.field]!r:.40}" for entry in lacking)
        choices.warn(
            "gguf-older",
            f"{source.what} lacks entries that converters write today: {taken} is taken, as the models had it that "
            "older ones wrote; add the entries to the file to silence this",
        )
    return found


GGUF_POOLINGS = ("", *POOLINGS)  # by their numbers in files


def _pooling(number: Any, arch: str, what: str) -> str:
    if type(number) is not int or not 0 <= number < len(GGUF_POOLINGS):
        known = ", ".join(f"{index} {name or 'none'}" for index, name in enumerate(GGUF_POOLINGS))
        raise FormatError(f"{what} has {arch}.pooling_type {number!r:.40}; known are {known}")
    return GGUF_POOLINGS[number]


def _has_bias(tensors: Container[str], projection: str) -> bool:
    return any(f"model.layers.0.{part}.{projection}.bias" in tensors for part in ("self_attn", "mlp"))


def _layer_types(key: str, kind: str, flags: list[Any], what: str) -> list[str]:
    """`ModelConfig.layer_types`, of true for each layer of a kind. Raises FormatError."""
    if any(type(value) is not bool for value in flags):
        raise FormatError(f"{what} has {key} {flags!r:.100}; it must be true or false for each layer")
    return [kind if value else LAYER_TYPES[1] for value in flags]


def _of_all_layers(key: str, values: list[Any], layers: Any, what: str) -> Any:
    """The value that an entry with one for each layer has for all. Raises FormatError where they differ."""
    if len(values) != layers:
        raise FormatError(f"{what}: {key} has {len(values)} values for {layers!r:.40} layers")
    for layer, value in enumerate(values):
        if value != values[0]:
            raise choices.refusal(
                "gguf-layers",
                f"{what}: {key} is {values[0]!r:.40} in layer 0 and {value!r:.40} in layer {layer}; layers that "
                "differ are not supported",
            )
    return values[0]


def _activation(implied: str | None, get: Any, tensors: Mapping[str, GGUFTensor], what: str) -> str:
    """What the file names; else what the architecture implies, or a guess for ``bitnet``, with a warning.

    Converters write no activation for ``bitnet``. llama.cpp then runs SiLU, as the first BitNet models do. These have
    as many key heads as query heads and the rotary base 10000. BitNet b1.58 2B-4T and its heirs have relu2.
    """
    named = get("hidden_activation")
    if named is not None:
        names = {"relu2": "relu2", "relu_sqr": "relu2", "relu_squared": "relu2", "silu": "silu", "swish": "silu"}
        if named not in names:
            raise FormatError(f"{what} has hidden_activation {named!r:.40}; known are {', '.join(names)}")
        return names[named]
    if implied is not None:
        return implied
    heads = get("attention.head_count")
    grouped, base = get("attention.head_count_kv", heads) != heads, get("rope.freq_base", 10000.0)
    newer = SUB_NORM in tensors and (grouped or base != 10000.0)
    taken, other = ("relu2", "silu") if newer else ("silu", "relu2")
    sizes = "like those of BitNet b1.58 2B-4T" if newer else "those of the first BitNet models, as llama.cpp takes it"
    choices.warn(
        "gguf-activation",
        f"{what} has no entry bitnet.hidden_activation. {taken} is taken, because its sizes are {sizes}; "
        f"give hidden_act={other!r} if the model was trained with {other}",
    )
    return taken


def _activation_bits(
    entries: Mapping[str, Any], trained: int | None, tensors: Mapping[str, GGUFTensor], what: str
) -> int | None:
    """Our own entry, 0 for floating; else what the architecture is trained with, and 8 for I2_S tensors.

    BitNet is trained with 8-bit activations, and bitnet.cpp, the only program with I2_S, runs the type with them.
    """
    eight = any(tensor.type.name == "I2_S" for tensor in tensors.values())
    bits = entries.get("bittorch.activation_bits", 8 if eight else trained or 0)
    if "bittorch.activation_bits" not in entries and bits:
        choices.note(
            "gguf-activation-bits",
            f"{what}: activations of ternary layers are {bits}-bit, as "
            f"{'bitnet.cpp runs I2_S' if eight else 'models of this architecture are trained'}; "
            "override={'activation_bits': None} leaves them floating",
        )
    if bits not in (0, 8, 16, 24):
        raise FormatError(f"{what} has bittorch.activation_bits {bits!r:.40}; it must be 0, 8, 16 or 24")
    return bits or None


def config_entries(config: ModelConfig, arch: str) -> dict[str, Any]:
    """The inverse of `config_from_gguf`: entries of sizes and rules."""
    architecture = architectures.find(config.architecture)
    entries: dict[str, Any] = {
        **written_entries(architecture, "gguf", config),
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.rotated,
        "rope.freq_base": float(config.rope_theta),
        **rope_entries(config),
        "vocab_size": config.vocab_size,
    }
    if architecture.gguf[next(iter(architecture.gguf))] is None:
        entries["hidden_activation"] = config.hidden_act
    for key, kind in LAYER_ENTRIES.items():
        if key in entries:
            entries[key] = [own == kind for own in config.layer_types]
    if config.pooling:
        entries["pooling_type"] = GGUF_POOLINGS.index(config.pooling)
    named = {f"{arch}.{key}": value for key, value in architecture.to_gguf(entries, config).items()}
    named["bittorch.activation_bits"] = config.activation_bits or 0
    if not config.fuse_norms:
        named["bittorch.fuse_norms"] = False
    if config.hadamard is not None:
        file_names = {name: gguf_name(name, architecture.gguf_layer) for name in config.hadamard.weights}
        named |= hadamard_entries(config.hadamard, file_names, config.tie_embeddings)
    if config.bos_token_id is not None:
        named["tokenizer.ggml.bos_token_id"] = named["bittorch.bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        named["tokenizer.ggml.eos_token_id"] = config.eos_token_ids[0]
        named["bittorch.eos_token_ids"] = list(config.eos_token_ids)
    return named
