"""config.json of transformers, read and written as `ModelConfig`."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from bittorch.models import architectures
from bittorch.models.architectures.base import (
    INPUT_NORM,
    REQUIRED,
    Architecture,
    keys_of,
    read_entries,
    with_keys,
    written_entries,
)
from bittorch.models.config import ROPE_ENTRIES, ModelConfig
from bittorch.models.hadamard import of_note, to_note
from bittorch.models.io import choices
from bittorch.models.io.errors import FormatError
from bittorch.models.io.override import check_used

ROPE_BASE = ("rope_theta", "partial_rotary_factor")
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias"), ((bool,), "true or false")),
    **dict.fromkeys(("rms_norm_eps", *ROPE_BASE, "rope_local_base_freq"), ((int, float), "a number")),
    **dict.fromkeys(("hidden_act", "hidden_activation"), ((str,), "a text")),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), ((dict,), "an object")),
}  # of entries that are computed with before `ModelConfig` checks fields
# Of fields that are no `Entry`.
KEYS = {"num_kv_heads": "num_key_value_heads", "tie_embeddings": "tie_word_embeddings", "eos_token_ids": "eos_token_id"}
HF_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # transformers' names, where they are others
ACTIVATION_NAMES = {"swish": "silu", **{theirs: own for own, theirs in HF_ACTIVATIONS.items()}}


def config_from_hf(
    values: Mapping[str, Any],
    names: Container[str],
    activation_bits: int | None,
    what: str,
    override: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        values: of config.json.
        names: of the stored tensors, which tell what no entry does.
        activation_bits: by the quantisation method.
        what: names the file in errors.
        override: fields in the place of what the file says.

    Raises:
        FormatError: an architecture, activation or rope type that is not read, missing or impossible sizes.
        ValueError: a field of ``override`` that the architecture does not have.
    """
    architecture, given = _architecture(values, what), override or {}
    check_used(given, architecture.of_tensors(names), what)
    try:
        values = architecture.hf_values(values)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{what}: {error}") from None
    if "rope_scaling" in given:  # of the file's, which may be unknown, the base alone
        rope = values.get("rope_scaling") or values.get("rope_parameters")
        base = {key: rope.get(key) for key in ROPE_BASE} if isinstance(rope, dict) else {}
        values = {**values, "rope_scaling": None, "rope_parameters": base}
    try:
        _check_types({key: value for key, value in values.items() if key not in given})
        _check_second_names(architecture, values, what)
        said = dict(
            **_said(architecture, values, names, given),
            **_rope(values, architecture, what),
            head_dim=_head_dim(values, architecture),
            biases=_biases(architecture, values, names, what),
            activation_bits=activation_bits,
        )
        return ModelConfig(**{**said, **given})
    except FormatError:
        raise
    except KeyError as error:
        raise FormatError(f"{what} has no entry {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        keys = {**keys_of(architecture, "hf"), **KEYS}
        raise FormatError(f"{what}: {with_keys(str(error), keys, given)}") from None


def _architecture(values: Mapping[str, Any], what: str) -> Architecture:
    """That of a config.json. Raises FormatError for one that is not known, and for entries that are not supported."""
    architecture = architectures.by_hf(values)
    if architecture is None:
        raise FormatError(
            f"{what}: model_type {values.get('model_type')!r:.100} (architectures "
            f"{values.get('architectures')!r:.100}) is not read; known are {', '.join(architectures.hf_types())}"
        )
    for key, neutral in architecture.hf_neutral.items():
        if key in values and values[key] not in neutral:
            raise FormatError(
                f"{what} has {key} {values[key]!r:.100}, which changes what the model computes and is not supported; "
                f"supported: {', '.join(map(repr, neutral))}"
            )
    return architecture


def _said(
    architecture: Architecture, values: Mapping[str, Any], names: Container[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What stands in single entries, or in their absence. Raises KeyError."""

    def value_of(key: str, default: Any) -> Any:
        default = architecture.hf_defaults.get(key, default)
        value = values.get(key, values.get(architecture.hf_second_names.get(key, key), default))
        return values[key] if value is REQUIRED else value

    act, eos, eps = value_of("hidden_act", None), values.get("eos_token_id"), value_of("rms_norm_eps", None)
    return {
        "architecture": architecture.of_tensors(names),
        **architecture.of_hf(read_entries(architecture, "hf", value_of, given)),
        "vocab_size": value_of("vocab_size", given.get("vocab_size", REQUIRED)),
        "num_kv_heads": _or(values.get("num_key_value_heads"), values["num_attention_heads"]),
        "rms_norm_eps": given.get("rms_norm_eps", eps),
        "hidden_act": ACTIVATION_NAMES.get(act, act),
        "tie_embeddings": bool(value_of("tie_word_embeddings", False)),
        "fuse_norms": note(values).get("fuse_norms", True),
        "norms_from_one": architecture.norms_from_one,
        "pooling": note(values).get("pooling", ""),
        "input_norm_eps": note(values).get("input_norm_eps", eps) if INPUT_NORM in names else 0.0,
        "hadamard": of_note(note(values).get("hadamard")),
        "bos_token_id": values.get("bos_token_id"),
        "eos_token_ids": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    }


def text_values(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json, of a model that sees images too the part for text, where that is an architecture of its own."""
    architecture, inner = architectures.by_hf(values), values.get("text_config")
    if architecture is None or not isinstance(inner, dict):
        return values
    outer = {key: value for key, value in values.items() if key not in ("text_config", "vision_config", "model_type")}
    return {"model_type": architecture.hf_types[0], **inner, **outer}


def _check_types(values: Mapping[str, Any]) -> None:
    """Of what has a value. Raises ValueError."""
    for key, (kinds, wanted) in _TYPES.items():
        if (value := values.get(key)) is not None and type(value) not in kinds:
            raise ValueError(f"{key} must be {wanted}, got {value!r:.100}")


def _check_second_names(architecture: Architecture, values: Mapping[str, Any], what: str) -> None:
    for key, second in architecture.hf_second_names.items():
        if second in values and values.get(key, values[second]) != values[second]:
            raise FormatError(f"{what} has {key} {values[key]!r:.40} and {second} {values[second]!r:.40}: keep one")


def num_experts(values: Mapping[str, Any]) -> int | None:
    """Of a config.json, under any of the names that transformers has for it; None where there is none."""
    found = values.get("num_experts", values.get("num_local_experts"))
    return found if type(found) is int else None


def note(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What this library adds to a config.json; empty in other files."""
    found = values.get("bittorch")
    return found if isinstance(found, dict) else {}


def refuse_note(found: Mapping[str, Any], program: str) -> None:
    """Raises ValueError where a `note` says what `bittorch.models.LanguageModel` computes and ``program`` does not."""
    for key in ("hadamard", "input_norm_eps"):
        if found.get(key):
            raise ValueError(
                f"config.json says {key!r} under 'bittorch', which {program} does not compute, so its outputs would "
                "be wrong; open the folder by bittorch.models.LanguageModel"
            )


def note_of(config: ModelConfig) -> dict[str, Any]:
    """What a config.json written here says under ``bittorch``."""
    return {
        "activation_bits": config.activation_bits,
        **({"biases": list(config.biases)} if config.biases else {}),
        **({} if config.fuse_norms else {"fuse_norms": False}),
        **({"pooling": config.pooling} if config.pooling else {}),
        **({"input_norm_eps": config.input_norm_eps} if config.input_norm_eps else {}),
        **({} if config.hadamard is None else {"hadamard": to_note(config.hadamard)}),
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _biases(architecture: Architecture, values: Mapping[str, Any], names: Container[str], what: str) -> tuple[str, ...]:
    """Which projections have a bias: as bittorch wrote it, else as transformers has it, where a missing one is zero."""
    given = note(values).get("biases")
    if isinstance(given, list):
        return tuple(given)
    found = architecture.hf_biases(values)
    if "o_proj" in found and "model.layers.0.self_attn.o_proj.bias" not in names:
        others = [name for name in found if name != "o_proj"]
        choices.warn(
            "hf-output-bias",
            f"{what} says attention_bias true, but no o_proj.bias is stored: o has no bias here, as transformers "
            f'starts it at zero; add "bittorch": {{"biases": {json.dumps(others)}}} to silence this',
        )
        return tuple(others)
    return found


def _head_dim(values: Mapping[str, Any], architecture: Architecture) -> Any:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if type(heads) is not int or heads < 1:
        raise ValueError(f"num_attention_heads must be a positive integer, got {heads!r:.100}")
    if (given := values.get("head_dim", architecture.hf_defaults.get("head_dim"))) is not None:
        return given
    return hidden // heads if type(hidden) is int else hidden  # what is no size is refused by its own name


def _rope(values: Mapping[str, Any], architecture: Architecture, what: str) -> dict[str, Any]:
    """Base and scaling: all in rope_parameters, or, in older files, in rope_theta and rope_scaling.

    transformers takes rope_scaling, else rope_parameters, and rope_theta where these have none.
    """
    default_theta: float = architecture.hf_defaults["rope_theta"]
    for name in ("rope_parameters", "rope_scaling"):
        entries = values.get(name) or {}
        _check_types(entries)
        if inner := [key for key, value in entries.items() if isinstance(value, dict)]:
            raise FormatError(
                f"{what}: {name} has {inner[0]!r:.40} with entries of its own, {entries[inner[0]]!r:.100}; "
                f"{architecture.name} has one rotation for all layers"
            )
    newer, older, outer = (values.get(name) for name in ("rope_parameters", "rope_scaling", "rope_theta"))
    given = _rope_entries(older or newer, outer, default_theta)
    other = (
        _rope_entries(newer, outer, default_theta) if older else {**given, "rope_theta": outer or given["rope_theta"]}
    )
    if newer and given != other:
        choices.warn(
            "hf-rope",
            f"{what} says rope_parameters {newer!r:.150}, but rope_scaling {older!r:.150} and rope_theta "
            f"{outer!r:.40}: {given!r:.150} is taken, as transformers does; remove the entries that are wrong",
        )
    usual = architecture.hf_defaults.get("partial_rotary_factor", 1)
    part = _or(given.pop("partial_rotary_factor", values.get("partial_rotary_factor")), usual)
    if part != 1 and not architecture.partial_rotation:
        raise FormatError(f"{what}: partial_rotary_factor {part!r:.40} is not read; heads must be rotated whole")
    theta, kind = given.pop("rope_theta"), given.pop("rope_type")
    if kind not in (known := ("default", *ROPE_ENTRIES)):
        raise FormatError(f"{what}: rope_type {kind!r:.100} is not read; known are {', '.join(known)}")
    scaling = None if kind == "default" else {"rope_type": kind, **given}
    theta = float(theta) if abs(theta) < 2**127 else theta  # what is no size is refused by `ModelConfig`
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": _rotary_dim(part, values, architecture)}


def _rotary_dim(part: float, values: Mapping[str, Any], architecture: Architecture) -> int:
    """Channels that are rotated, 0 for all. Raises ValueError."""
    head_dim = _head_dim(values, architecture)
    if part == 1 or type(head_dim) is not int or not 0 < head_dim < 2**31:
        return 0
    if not 0 < part < 1 or not (rotated := int(head_dim * part)):
        raise ValueError(
            f"partial_rotary_factor must be up to 1 and leave channels to rotate of head_dim={head_dim}, got {part!r}"
        )
    return rotated


def _rope_entries(scaling: Any, theta: Any, default_theta: float) -> dict[str, Any]:
    """Entries with rope_theta and rope_type, which older files call type."""
    given = {name: value for name, value in dict(scaling or {}).items() if value is not None}
    older = given.pop("type", None)
    return {"rope_theta": _or(theta, default_theta), "rope_type": older or "default", **given}


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The entries of a config.json that transformers reads.

    It has one entry for the biases of attention, and one for those of the MLP: `note_of` has what they cannot say.
    """
    architecture = architectures.find(config.architecture)
    rope = {"rope_theta": config.rope_theta, **(config.rope_scaling or {"rope_type": "default"})}
    if architecture.partial_rotation:
        rope["partial_rotary_factor"] = config.rotated / config.head_dim
    eos = list(config.eos_token_ids)
    values = {
        "architectures": [architecture.hf_class],
        "model_type": architecture.hf_types[0],
        "vocab_size": config.vocab_size,
        **written_entries(architecture, "hf", config),
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": rope,
        "hidden_act": HF_ACTIVATIONS.get(config.hidden_act, config.hidden_act),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": "q_proj" in config.biases,
        "mlp_bias": "up_proj" in config.biases,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }
    return architecture.to_hf(values, config)
