"""The entries ``prism.hadamard.*`` of PrismML's GGUF files: which weights stand in a rotated basis, and in which.

Version 1 is of models whose head is a tensor of its own; version 2, with ``tied_output``, of those whose head is the
embedding, where both are in the basis. The formulas are those of `bittorch.models.hadamard`.

Source: the llama.cpp fork of PrismML, docs of its shared Hadamard head; ggml-org/llama.cpp issue 29058.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from bittorch.models.config import HEAD, ModelConfig
from bittorch.models.hadamard import Hadamard
from bittorch.models.io import choices

PREFIX = "prism.hadamard."
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
FIXED = {"transform": ("normalized-sylvester-walsh-hadamard",), "axis": ("input-last-dimension",)}
MODES = ("identity", "explicit")
NAMES = (
    "version",
    "block_size",
    "transform",
    "axis",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
    "tied_output",
    "gdn_v_grouped",
)
KEYS = tuple(PREFIX + name for name in NAMES)


def hadamard_of(
    entries: Mapping[str, Any], names: Mapping[str, str], config: ModelConfig, what: str
) -> Hadamard | None:
    """What the entries of a file say; None where it has none of them.

    Args:
        entries: of the header.
        names: of the tensors that the model uses, canonical ones by those of the file.
        config: the rest of the model.
        what: names the file in errors.

    Raises:
        FormatError: another version, transform, axis or mode of signs, entries that are missing or contradict each
            other or the tensors; names key and value.
    """
    given = {key.removeprefix(PREFIX): value for key, value in entries.items() if key in KEYS}
    if not given:
        return None

    def refused(name: str, must: str) -> Exception:
        value = given.get(name)
        return choices.refusal("gguf-hadamard", f"{what} has {PREFIX}{name} {value!r:.100}, which must be {must}")

    tied = given.get("tied_output", False)
    if type(tied) is not bool:
        raise refused("tied_output", "true or false")
    if given.get("version") != 1 + tied:
        raise refused("version", f"{1 + tied}, as tied_output is {str(tied).lower()}")
    for name, known in {**FIXED, "sign_mode": MODES}.items():
        if given.get(name) not in known:
            raise refused(name, " or ".join(map(repr, known)))
    weights = given.get("weight_names")
    if not isinstance(weights, list) or not weights or not all(isinstance(name, str) for name in weights):
        raise refused("weight_names", "names of tensors")
    rows = given.get("inverse_weight_names", [])
    if rows not in ([], [EMBEDDING]):
        raise refused("inverse_weight_names", f"empty or {EMBEDDING!r}")
    if unknown := [name for name in weights if name not in names or name == EMBEDDING]:
        raise refused("weight_names", f"names of weights that the file has; {unknown[0]!r:.100} is none")
    if tied and (OUTPUT in names or not rows):
        raise refused("tied_output", f"false where {OUTPUT} is stored or inverse_weight_names lacks {EMBEDDING}")
    if rows and not tied and OUTPUT not in names:
        raise refused("tied_output", f"true where {EMBEDDING} is in inverse_weight_names and {OUTPUT} is not stored")
    canonical = [names[name] for name in weights] + ([HEAD] if tied else [])
    grouped = given.get("gdn_v_grouped", False)
    if type(grouped) is not bool or (grouped and not config.delta_layers):
        raise refused("gdn_v_grouped", "true or false, and false for a model without DeltaNet layers")
    if not grouped and has_delta_outputs(canonical) and config.delta_key_heads != config.delta_value_heads:
        raise refused("gdn_v_grouped", "true where ssm_out of several value heads a key head is rotated")
    try:
        return Hadamard(given.get("block_size", 0), tuple(canonical), bool(rows), _signs(given, refused))
    except ValueError as error:
        raise choices.refusal("gguf-hadamard", f"{what}: the entries {PREFIX}*: {error}") from None


def _signs(given: Mapping[str, Any], refused: Any) -> dict[int, tuple[int, ...]]:
    """By width; the values of all widths stand one behind the other."""
    if given["sign_mode"] == MODES[0]:
        for name in ("sign_widths", "sign_values"):
            if given.get(name):
                raise refused(name, f"absent for sign_mode {MODES[0]!r}")
        return {}
    widths, values = given.get("sign_widths"), given.get("sign_values")
    if not isinstance(widths, list) or not widths or any(type(width) is not int or width < 1 for width in widths):
        raise refused("sign_widths", "positive integers")
    if len(set(widths)) < len(widths):
        raise refused("sign_widths", "different numbers")
    if not isinstance(values, list) or len(values) != sum(widths):
        count = len(values) if isinstance(values, list) else 0
        raise refused("sign_values", f"{sum(widths)} numbers for sign_widths {widths!r:.100}, got {count}")
    ends = list(itertools.accumulate(widths, initial=0))
    return {width: tuple(values[begin:end]) for width, begin, end in zip(widths, ends, ends[1:], strict=False)}


def hadamard_entries(found: Hadamard, file_names: Mapping[str, str], tied: bool) -> dict[str, Any]:
    """The inverse of `hadamard_of`.

    Args:
        found: what the model has.
        file_names: of its weights, by their canonical names.
        tied: whether the head is the embedding.
    """
    tied_output = tied and HEAD in found.weights
    entries: dict[str, Any] = {
        "version": 1 + tied_output,
        "block_size": found.block_size,
        "transform": FIXED["transform"][0],
        "axis": FIXED["axis"][0],
        "sign_mode": MODES[bool(found.signs)],
        "weight_names": [file_names[name] for name in found.weights if not (tied_output and name == HEAD)],
        "tied_output": tied_output,
    }
    if has_delta_outputs(found.weights):
        entries["gdn_v_grouped"] = True
    if found.embedding:
        entries["inverse_weight_names"] = [EMBEDDING]
    if found.signs:
        entries["sign_widths"] = list(found.signs)
        entries["sign_values"] = [sign for signs in found.signs.values() for sign in signs]
    return {PREFIX + name: value for name, value in entries.items()}


def has_delta_outputs(names: Iterable[str]) -> bool:
    """Whether output projections of DeltaNet layers are among the weights.

    A file has the columns of those that are rotated by groups of value heads, as transformers has them.
    """
    return any(name.endswith("linear_attn.out_proj.weight") for name in names)
