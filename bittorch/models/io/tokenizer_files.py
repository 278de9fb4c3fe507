"""Tokenizers on their way from one format to another: files of a directory, entries of a GGUF file.

Nothing here tokenizes. Files go from directory to directory as they are; `gguf_tokenizer` makes entries of them. The
entries of a GGUF file without a tokenizer.json go into a directory as `GGUF_TOKENIZER`, a JSON object, and come back.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bittorch.models.io.errors import FormatError
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
VOCABULARIES = (GGUF_TOKENIZER, "tokenizer.json", "tokenizer.model")  # the first that is there counts
TEMPLATES = "additional_chat_templates"  # the directory of the templates besides the default one
HF_JSON = "tokenizer.huggingface.json"
FEWEST = 0.9  # tokens for each row of the model, at least
LARGEST_GAP = 1 << 16  # numbers without a token before an added one; more are taken for damage


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies a tokenizer's files. Raises FormatError for a link that leads out of the source."""
    for name in FILES:
        if (path := checkpoint_file(source, name)) is not None:
            shutil.copyfile(path, directory / name)
    for path in sorted((source / TEMPLATES).glob("*.jinja")):
        if checkpoint_file(source, f"{TEMPLATES}/{path.name}") is not None:
            (directory / TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(path, directory / TEMPLATES / path.name)


def checkpoint_file(directory: Path, name: str) -> Path | None:
    """A file of a directory; None where there is none.

    Raises:
        FormatError: a symbolic link to a file elsewhere, which nobody meant to hand on with the checkpoint. The cache
            of huggingface_hub links from ``snapshots`` to ``blobs``, and is accepted.
    """
    path = directory / name
    if not path.is_file():
        return None
    real, home = path.resolve(), directory.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not real.is_relative_to(home) and not real.is_relative_to(cache):
        raise FormatError(
            f"{path} is a link to {real}, outside of the directory; if it belongs to the checkpoint, put a copy there"
        )
    return path


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The object in a file of a directory; empty where there is no such file. Raises FormatError."""
    path = checkpoint_file(directory, name)
    return {} if path is None else parse_json(path.read_bytes(), str(path))


def end_tokens(directory: Path) -> list[int]:
    """The end tokens of generation_config.json, which generation with transformers heeds. Raises FormatError."""
    ends = read_json(directory, "generation_config.json").get("eos_token_id")
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(end) is int and end >= 0 for end in listed):
        raise FormatError(
            f"{directory / 'generation_config.json'}: eos_token_id must be numbers of tokens, got {ends!r:.100}"
        )
    return listed


def numbered_tokens(directory: Path) -> dict[int, dict[str, Any]]:
    """The tokens that a directory numbers beside its vocabulary, as tokenizer.json writes added tokens.

    Those of tokenizer_config.json (``added_tokens_decoder``); where it has none, as older files, of added_tokens.json.

    Raises:
        FormatError: a token without a text, or without a number.
    """
    config = read_json(directory, "tokenizer_config.json")
    found: dict[int, dict[str, Any]] = {}
    if given := config.get("added_tokens_decoder"):
        for number, token in given.items() if isinstance(given, dict) else [("", given)]:
            if not str(number).isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
                raise FormatError(
                    f"{directory / 'tokenizer_config.json'}: added_tokens_decoder must give a token with content for "
                    f"each number, got {number!r:.40}: {token!r:.100}"
                )
            found[int(number)] = _added(token["content"], token, bool(token.get("special", False)))
        return found
    special = _special_texts(config) | _special_texts(read_json(directory, "special_tokens_map.json"))
    for text, number in read_json(directory, "added_tokens.json").items():
        if type(number) is not int or number < 0:
            raise FormatError(
                f"{directory / 'added_tokens.json'}: {text!r:.100} must have a number, got {number!r:.40}"
            )
        found[number] = _added(text, {}, text in special)
    return found


def tokens_beside(
    numbers: Mapping[str, int], numbered: Mapping[int, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What a vocabulary lacks of `numbered_tokens`, and why some cannot have their numbers.

    Args:
        numbers: of the vocabulary's tokens.
        numbered: what is to be there too.

    Returns:
        Tokens with ``id`` from the end of the vocabulary on, placeholders between them, as transformers names them;
        texts of tokens whose numbers contradict the vocabulary, and how.
    """
    size = max(numbers.values(), default=-1) + 1
    more: list[dict[str, Any]] = []
    lost: dict[str, str] = {}
    for number, token in sorted(numbered.items()):
        text, own, end = token["content"], numbers.get(token["content"]), size + len(more)
        if own is None and end <= number < end + LARGEST_GAP:
            more += [{"id": n, **_added(f"<|reserved_token_{n}|>", {}, False)} for n in range(end, number)]
            more.append({"id": number, **token})
        elif own != number:
            why = f"the vocabulary has {size} tokens" if own is None else f"the vocabulary has it as {own}"
            lost[text] = f"is number {number}, but {why}"
    return more, lost


def _added(text: str, flags: Mapping[str, Any], special: bool) -> dict[str, Any]:
    kept = {name: bool(flags.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"content": text, **kept, "special": special}


def _special_texts(settings: Mapping[str, Any]) -> set[str]:
    """The texts of what is called a special token, one or a list, each a text or an object with one."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens")
    found = (settings.get(name) for name in names)
    texts = (token.get("content") if isinstance(token, dict) else token for value in found for token in _items(value))
    return {text for text in texts if isinstance(text, str)}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def templates_of(directory: Path) -> dict[str, str]:
    """The chat templates of a directory by name, where ``default`` is the one that counts; empty without any."""
    found: dict[str, str] = {}
    given = read_json(directory, "tokenizer_config.json").get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        for entry in given:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                found[str(entry.get("name"))] = entry["template"]
    if (path := checkpoint_file(directory, "chat_template.jinja")) is not None:
        found["default"] = path.read_text(encoding="utf-8")
    for path in sorted((directory / TEMPLATES).glob("*.jinja")):
        if checkpoint_file(directory, f"{TEMPLATES}/{path.name}") is not None:
            found[path.stem] = path.read_text(encoding="utf-8")
    return found


def token_count(source: Path | Mapping[str, Any]) -> int | None:
    """The tokens of a directory's or a GGUF file's tokenizer; None for a tokenizer.model, which takes reading."""
    if isinstance(source, Path) and (source / GGUF_TOKENIZER).is_file():
        source = read_json(source, GGUF_TOKENIZER)
    if isinstance(source, Path):
        found = read_json(source, "tokenizer.json")
        if not found:
            return None
        model, added = found.get("model"), found.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocabulary, dict | list):
            raise FormatError(f"{source / 'tokenizer.json'} has no vocabulary")
        numbers = set(vocabulary.values()) if isinstance(vocabulary, dict) else set(range(len(vocabulary)))
        for token in added if isinstance(added, list) else []:
            numbers.add(token.get("id") if isinstance(token, dict) else None)
        return len(numbers | numbered_tokens(source).keys())
    tokens = source.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise FormatError("the GGUF file carries no tokenizer: it has no tokenizer.ggml.tokens")
    return len(tokens)


def size_fault(tokens: int, rows: int) -> str | None:
    """Why a tokenizer of so many tokens is not that of a model with so many rows; None where it may be.

    Models have more rows, up to a multiple of some power of two.
    """
    if tokens > rows or tokens < FEWEST * rows:
        return f"the tokenizer has {tokens} tokens, the model {rows}"
    return None


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
