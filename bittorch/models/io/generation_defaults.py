"""How a model is to be sampled, as its files say: generation_config.json, or the ``general.sampling.*`` of a GGUF file.

Nothing here is used to generate: it goes along from one format to another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bittorch.models.config import ModelConfig
from bittorch.models.io.checkpoint import Checkpoint
from bittorch.models.io.tokenizer_files import read_json

FILE = "generation_config.json"
# transformers' name, GGUF's, and what the value is.
SAMPLING: dict[str, tuple[str, type]] = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("penalty_repeat", float),
}
PREFIX = "general.sampling."
# What generation_config.json says besides: token numbers, notes of the program that wrote it, and what else it returns.
NOT_SAMPLING = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "_from_model_config",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
)


def generation_defaults(source: Checkpoint) -> dict[str, Any]:
    """What a generation_config.json of this model says; empty where nothing is said. Raises FormatError."""
    if isinstance(source.tokenizer_source, Path):
        return read_json(source.tokenizer_source, FILE)
    values = {
        name: source.metadata[PREFIX + key] for name, (key, _) in SAMPLING.items() if PREFIX + key in source.metadata
    }
    return {"do_sample": True, **values} if values else {}


def sampling_entries(directory: Path, lost: list[str]) -> dict[str, Any]:
    """The entries of a GGUF file for a directory's defaults; what it cannot hold is added to ``lost``."""
    values = read_json(directory, FILE)
    entries = {
        PREFIX + key: kind(values[name])
        for name, (key, kind) in SAMPLING.items()
        if type(values.get(name)) in (int, kind) and 0 <= values[name] < 2**31  # no truth value, no text, no NaN
    }
    held = {name for name, (key, _) in SAMPLING.items() if PREFIX + key in entries}
    held |= {"do_sample"} if held and values.get("do_sample") is True else set()
    if rest := sorted(key for key in values if key not in NOT_SAMPLING and key not in held):
        lost.append(f"{', '.join(rest)} of {FILE}")
    return entries


def write_defaults(values: Mapping[str, Any], config: ModelConfig, directory: Path) -> None:
    """A generation_config.json of these values, unless there is none of them.

    transformers heeds the end tokens of this file alone where there is one, so it has those of the configuration.
    """
    if values:
        ends = list(config.eos_token_ids)
        own = {"bos_token_id": config.bos_token_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}
        text = json.dumps({**values, **{key: value for key, value in own.items() if value not in (None, [])}}, indent=2)
        (directory / FILE).write_text(text + "\n")
