"""Tokenizers on their way from one format to another: files of a directory, entries of a GGUF file.

Nothing here tokenizes. Files go from directory to directory as they are. A tokenizer.json goes into a GGUF file whole,
under ``tokenizer.huggingface.json``, together with the vocabulary and merges that ggml's programs read; it comes out of
there whole. The entries of another GGUF file go into a directory as `GGUF_TOKENIZER`, a JSON object, and come back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bittorch.models.config import ModelConfig
from bittorch.models.io.safetensors_header import parse_json
from bittorch.models.pretokenizers import patterns_of

GGUF_TOKENIZER = "gguf_tokenizer.json"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    GGUF_TOKENIZER,
)
TEMPLATES = "additional_chat_templates"  # the directory of the templates besides the default one
HF_JSON = "tokenizer.huggingface.json"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of ggml


def write_tokenizer(source: Path | Mapping[str, Any], directory: Path) -> None:
    """Puts a tokenizer into a directory."""
    if isinstance(source, Path):
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        return
    if isinstance(source.get(HF_JSON), str):
        (directory / "tokenizer.json").write_text(source[HF_JSON], encoding="utf-8")
        if isinstance(template := source.get("tokenizer.chat_template"), str):
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    elif source:
        (directory / GGUF_TOKENIZER).write_text(json.dumps(dict(source)))


def with_pre_tokenizer(source: Path | Mapping[str, Any], name: str) -> dict[str, Any]:
    """A GGUF file's tokenizer that cuts text as ``name`` says.

    Raises:
        ValueError: a name that is not supported, or a tokenizer that has its own rules: tokenizer.json, SentencePiece.
    """
    patterns_of(name)
    if isinstance(source, Path) and (source / GGUF_TOKENIZER).is_file():
        source = parse_json((source / GGUF_TOKENIZER).read_bytes(), str(source / GGUF_TOKENIZER))
    if isinstance(source, Path) or HF_JSON in source or source.get("tokenizer.ggml.model") != "gpt2":
        raise ValueError(
            f"pre_tokenizer={name!r} is for byte-level vocabularies of GGUF files; this tokenizer has rules of its own"
        )
    return {**source, "tokenizer.ggml.pre": name}


def tokenizer_entries(directory: Path, config: ModelConfig) -> dict[str, Any]:
    """The ``tokenizer.*`` entries of a GGUF file, from a directory; empty where it has no tokenizer.

    Raises:
        FormatError: a tokenizer file that is no JSON object.
    """
    if (directory / GGUF_TOKENIZER).is_file():
        return parse_json((directory / GGUF_TOKENIZER).read_bytes(), str(directory / GGUF_TOKENIZER))
    entries: dict[str, Any] = {}
    if (directory / "tokenizer.json").is_file():
        text = (directory / "tokenizer.json").read_bytes()
        entries[HF_JSON] = text.decode("utf-8", "surrogateescape")
        entries |= _vocabulary(parse_json(text, str(directory / "tokenizer.json")), config)
    template = _chat_template(directory)
    return entries | ({"tokenizer.chat_template": template} if template else {})


def _chat_template(directory: Path) -> str | None:
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    if (directory / "tokenizer_config.json").is_file():
        path = directory / "tokenizer_config.json"
        template = parse_json(path.read_bytes(), str(path)).get("chat_template")
        return template if isinstance(template, str) else None
    return None


def _vocabulary(tokenizer: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """What ggml's programs read of a byte-level BPE; nothing for other models, which they would read wrongly."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        return {}
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    for token, number in model["vocab"].items():
        if 0 <= number < config.vocab_size:
            tokens[number], types[number] = token, NORMAL
    for added in tokenizer.get("added_tokens") or []:
        if 0 <= added["id"] < config.vocab_size:
            tokens[added["id"]] = added["content"]
            types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(tokenizer),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """ggml's name for how text is split before merging."""
    split = json.dumps(tokenizer.get("pre_tokenizer"))
    if "{N}{1,3}" in split:
        return "llama-bpe"
    return "smollm" if '"Digits"' in split else "gpt-2"
