"""How GGUF files say that rotary positions are scaled: by entries, and by tensors of factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bittorch.models.config import ModelConfig
from bittorch.models.io.errors import FormatError, LossyError
from bittorch.models.rope import rope_magnitude

ROPE_FACTORS = "rope_freqs.weight"
# Tensors of numbers by which rotary frequencies are divided, and what `ModelConfig.rope_scaling` calls them.
ROPE_TENSORS = {
    ROPE_FACTORS: "factors",
    "rope_factors_short.weight": "short_factor",
    "rope_factors_long.weight": "long_factor",
}


def rope_scaling(get: Any, factors: Mapping[str, tuple[float, ...]], what: str) -> dict[str, Any] | None:
    """`ModelConfig.rope_scaling` of a file.

    Linear where no type is given, and the older name of its factor; 0 means 1: all as in llama.cpp.

    Args:
        get: the value of an entry of the architecture, or the default.
        factors: values of those `ROPE_TENSORS` that the file has.
        what: names the file in errors.

    Raises:
        FormatError: a type that is not read, or that these factors do not belong to.
    """
    kind = get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise FormatError(
            f"{what} scales rotary positions by {kind!r:.40}; supported are none, linear, yarn, longrope, and "
            "rope_freqs.weight"
        )
    if (blend := get("rope.scaling.yarn_ext_factor", float(kind == "yarn"))) != float(kind == "yarn"):
        raise FormatError(f"{what}: rope.scaling.yarn_ext_factor is {blend!r:.40}; supported are 1 for yarn, else 0")
    if kind != "longrope" and (others := factors.keys() - {ROPE_FACTORS}):
        raise FormatError(f"{what} has {min(others)}, but rope.scaling.type {kind!r}; these factors are of longrope")
    if kind == "yarn":
        return _yarn(get, factors, what)
    if kind == "longrope":
        return _longrope(get, factors, what)
    factor = get("rope.scaling.factor", get("rope.scale_linear", 0.0)) if kind == "linear" else 0.0
    if type(factor) not in (int, float):
        raise FormatError(f"{what}: rope.scaling.factor must be a number, got {factor!r:.40}")
    factor = float(factor) or 1.0
    if ROPE_FACTORS in factors:
        return {"rope_type": "factors", "factors": tuple(factor * own for own in factors[ROPE_FACTORS])}
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


# Entries of YaRN in config.json and in GGUF files.
YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def _yarn(get: Any, factors: Mapping[str, tuple[float, ...]], what: str) -> dict[str, Any]:
    """llama.cpp takes the context of the model for the original one where a file says none."""
    if ROPE_FACTORS in factors:
        raise FormatError(f"{what} scales rotary positions by yarn and by {ROPE_FACTORS}; one of both is wrong")
    if (scale := get("rope.scaling.yarn_log_multiplier", 0.0)) != 0:
        raise FormatError(f"{what}: rope.scaling.yarn_log_multiplier is {scale!r:.40}; supported is 0")
    scaling = {name: get(f"rope.scaling.{key}", None) for name, key in YARN.items()}
    scaling["original_max_position_embeddings"] = scaling["original_max_position_embeddings"] or get("context_length")
    return {"rope_type": "yarn", **{name: value for name, value in scaling.items() if value is not None}}


def _longrope(get: Any, factors: Mapping[str, tuple[float, ...]], what: str) -> dict[str, Any]:
    """As llama.cpp takes it where a file says nothing: the context is the original one, the magnitude 1."""
    if ROPE_FACTORS in factors or len(factors) != len(ROPE_TENSORS) - 1:
        wanted = " and ".join(name for name in ROPE_TENSORS if name != ROPE_FACTORS)
        raise FormatError(
            f"{what} scales rotary positions by longrope, which needs {wanted} alone, but has "
            f"{', '.join(factors) or 'neither'}"
        )
    if (factor := get("rope.scaling.factor", 0.0)) not in (0, 1):
        raise FormatError(f"{what}: rope.scaling.factor is {factor!r:.40}; supported beside longrope is 1")
    return {
        "rope_type": "longrope",
        **{ROPE_TENSORS[name]: values for name, values in factors.items()},
        "original_max_position_embeddings": get("rope.scaling.original_context_length", 0) or get("context_length"),
        "attention_factor": get("rope.scaling.attn_factor", 1.0),
    }


def _yarn_entries(scaling: Mapping[str, Any]) -> dict[str, Any]:
    if rest := [name for name in scaling if name != "rope_type" and name not in YARN]:
        raise LossyError(
            f'GGUF has no entry for {rest[0]} {scaling[rest[0]]!r:.40} of yarn\'s rope_scaling; write to="bittorch"'
        )
    sizes = {key: scaling[name] for name, key in YARN.items() if name in scaling}
    whole = {key: value if key == "original_context_length" else float(value) for key, value in sizes.items()}
    return {"rope.scaling.type": "yarn", **{f"rope.scaling.{key}": value for key, value in whole.items()}}


def rope_entries(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `rope_scaling`, but for the factors. Raises LossyError for what llama.cpp has no entry for."""
    scaling = config.rope_scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if scaling["rope_type"] == "yarn":
        return _yarn_entries(scaling)
    if scaling["rope_type"] == "longrope":
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": int(scaling["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": rope_magnitude(config),
        }
    return {}


def rope_factors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """The `ROPE_TENSORS` of a model: by what rotary frequencies are divided.

    ``llama3`` leaves waves shorter than ``original / high_freq_factor`` alone, divides those longer than
    ``original / low_freq_factor`` by ``factor``, and blends between. Source: transformers, modeling_rope_utils.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling["rope_type"] != "llama3":
        return {tensor: tuple(scaling[name]) for tensor, name in ROPE_TENSORS.items() if name in scaling}
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = scaling["original_max_position_embeddings"]
    factors = []
    for pair in range(0, config.rotated, 2):
        wave = 2 * math.pi * config.rope_theta ** (pair / config.rotated)
        smooth = min(1.0, max(0.0, (original / wave - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return {ROPE_FACTORS: tuple(factors)}
