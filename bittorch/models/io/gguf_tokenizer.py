"""The tokenizer of a directory as entries of a GGUF file, and back.

A tokenizer.json goes into the file whole, under ``tokenizer.huggingface.json``, beside what ggml's programs read:
vocabulary, merges, numbers of special tokens, chat templates. What they cannot be told is named in a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bittorch.models.config import ModelConfig
from bittorch.models.io import choices
from bittorch.models.io.generation_defaults import sampling_entries
from bittorch.models.io.safetensors_header import parse_json
from bittorch.models.io.tokenizer_files import (
    GGUF_TOKENIZER,
    HF_JSON,
    TEMPLATES,
    checkpoint_file,
    end_tokens,
    numbered_tokens,
    read_json,
    templates_of,
    tokens_beside,
)
from bittorch.models.pretokenizers import GPT2, OURS, PATTERNS

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of ggml
# Special tokens: transformers' name, GGUF's.
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
ENDS = ("eos", "eot", "eom")  # the end tokens that GGUF has a number for


def tokenizer_entries(directory: Path, config: ModelConfig) -> dict[str, Any]:
    """The ``tokenizer.*`` entries of a GGUF file, from a directory, and how the model is to be sampled.

    Args:
        directory: with the tokenizer's files.
        config: whose end tokens the file must tell too.

    Raises:
        FormatError: a tokenizer file that is no JSON object, or that leads out of the directory.

    Warns:
        CheckpointWarning: what GGUF cannot hold.
    """
    lost: list[str] = []
    if (path := checkpoint_file(directory, GGUF_TOKENIZER)) is not None:
        entries = parse_json(path.read_bytes(), str(path))
    else:
        entries = _tokenizer_entries(directory, config, lost)
    entries |= sampling_entries(directory, lost)
    if lost:
        choices.warn("write-gguf-tokenizer", f"the GGUF file does not hold from {directory}: {'; '.join(lost)}")
    return entries


def _tokenizer_entries(directory: Path, config: ModelConfig, lost: list[str]) -> dict[str, Any]:
    """Of the files of transformers; empty where there are none."""
    entries: dict[str, Any] = {}
    given, added = read_json(directory, "tokenizer_config.json"), numbered_tokens(directory)
    settings = read_json(directory, "special_tokens_map.json") | {k: v for k, v in given.items() if v is not None}
    if (path := checkpoint_file(directory, "tokenizer.json")) is not None:
        text = path.read_bytes()
        parsed = parse_json(text, str(path))
        entries[HF_JSON] = text.decode("utf-8", "surrogateescape")
        numbers = numbers_of(parsed)
        if more := tokens_beside(numbers, added)[0]:
            parsed["added_tokens"] = [*(parsed.get("added_tokens") or []), *more]
            entries[HF_JSON], numbers = json.dumps(parsed, ensure_ascii=False), numbers_of(parsed)
        entries |= _vocabulary(parsed, numbers, config, lost)
        entries |= _special(settings, numbers, parsed)
        entries |= _ends(directory, settings, numbers, config, lost)
    elif (path := checkpoint_file(directory, "tokenizer.model")) is not None:
        settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, **settings}
        entries |= _pieces(path, added, config, lost)
        if entries:
            numbers = {text: number for number, text in enumerate(entries["tokenizer.ggml.tokens"])}
            entries |= _special(settings, numbers, {})
            entries |= _ends(directory, settings, numbers, config, lost)
    return entries | _templates(templates_of(directory))


def numbers_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The number of each token of a tokenizer.json, added ones included."""
    model = tokenizer.get("model")
    vocabulary: Any = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of unigram: pairs of token and score
        vocabulary = {pair[0]: number for number, pair in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    return {**(vocabulary if isinstance(vocabulary, dict) else {}), **added}


def _vocabulary(
    tokenizer: Mapping[str, Any], numbers: Mapping[str, int], config: ModelConfig, lost: list[str]
) -> dict[str, Any]:
    """Tokens for all, and for byte-level BPE what ggml's programs need to cut text."""
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    for token, number in numbers.items():
        if 0 <= number < config.vocab_size:
            tokens[number], types[number] = token, NORMAL
    for added in tokenizer.get("added_tokens") or []:
        if 0 <= added["id"] < config.vocab_size:
            types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    entries = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    model: Any = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')}{' with bytes' if model.get('byte_fallback') else ''}" if model else "none"
        lost.append(f"a vocabulary of kind {kind} as ggml's programs read it (bittorch reads tokenizer.json)")
        return {"tokenizer.ggml.model": "no_vocab", **entries}
    name, exact = _pre_tokenizer(tokenizer)
    if not exact:
        lost.append(f"how tokenizer.json cuts text into words; {name} is the nearest that ggml's programs have")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        **entries,
        "tokenizer.ggml.merges": merges,
    }


def _pieces(path: Path, added: Mapping[int, Mapping[str, Any]], config: ModelConfig, lost: list[str]) -> dict[str, Any]:
    """The vocabulary of a SentencePiece model and the tokens beside it; nothing of another tokenizer.model."""
    data = path.read_bytes()
    ranks = data[:64].split(b"\n")[0].split()
    if len(ranks) == 2 and ranks[1].isdigit():  # tiktoken's lines of a token and its rank
        lost.append("tokenizer.model, which has ranks of tiktoken; write tokenizer.json first, with transformers")
        return {}
    try:
        from bittorch.models.sentencepiece_model import read_model
    except ImportError as error:
        lost.append(f"tokenizer.model, as {error.name} is missing; install bittorch[lm]")
        return {}
    pieces = read_model(data, str(path))
    size = config.vocab_size
    tokens = [*pieces.texts, *(f"[PAD{number}]" for number in range(len(pieces.texts), size))][:size]
    types = [*pieces.types, *[UNUSED] * size][:size]
    for number, token in added.items():
        if len(pieces.texts) <= number < size:
            tokens[number], types[number] = token["content"], CONTROL if token["special"] else USER_DEFINED
    charsmap = {"tokenizer.ggml.precompiled_charsmap": pieces.charsmap} if pieces.charsmap else {}
    return {
        "tokenizer.ggml.model": "t5" if pieces.unigram else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [*map(float, pieces.scores), *[-1000.0] * size][:size],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": pieces.add_prefix_space,
        "tokenizer.ggml.remove_extra_whitespaces": pieces.collapse_spaces,
        **charsmap,
    }


# Behaviour and inversion of a Split that leaves words and what is between them as they are; the second where a pattern
# matches all of a text.
WHOLE = (("Isolated", False), ("Removed", True))


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> tuple[str, bool]:
    """ggml's name for how text is cut before merging, and whether it is exactly that."""
    found = tuple(_patterns(tokenizer.get("pre_tokenizer")))
    for name, patterns in PATTERNS.items():
        if patterns == found and name not in OURS:
            return name, True
    split = json.dumps(tokenizer.get("pre_tokenizer"))
    if "{N}{1,3}" in split:
        return "llama-bpe", False
    return ("smollm" if '"Digits"' in split else "gpt-2"), False


def _patterns(step: Any) -> Iterable[str]:
    """The patterns by which a pre-tokenizer of tokenizer.json cuts, in order; of a step that has none, what it says."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Sequence":
        for part in step.get("pretokenizers") or []:
            yield from _patterns(part)
    elif step.get("type") == "Split" and (step.get("behavior"), bool(step.get("invert"))) in WHOLE:
        pattern = step.get("pattern")
        yield str(pattern.get("Regex") if isinstance(pattern, dict) else pattern)
    elif step.get("type") == "Digits":
        yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    elif step.get("type") == "ByteLevel":
        yield from (GPT2,) if step.get("use_regex", True) else ()
    else:
        yield json.dumps(step)


def _special(settings: Mapping[str, Any], numbers: Mapping[str, int], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of the special tokens, and which of them stand around a text."""
    entries: dict[str, Any] = {}
    for name, key in SPECIAL.items():
        if (number := _number(settings.get(name), numbers)) is not None:
            entries[f"tokenizer.ggml.{key}_token_id"] = number
    around = _around(tokenizer.get("post_processor"))
    for key, name, at in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", -1)):
        token = _text(settings.get(name))
        if token is not None:
            told = settings.get(key)
            entries[f"tokenizer.ggml.{key}"] = (
                told if isinstance(told, bool) else around[at : at + 1 or None] == [token]
            )
    return entries


def _around(step: Any) -> list[str]:
    """The special tokens and the texts, as ``$A``, of the template by which tokenizer.json frames one text."""
    if not isinstance(step, dict):
        return []
    if step.get("type") == "Sequence":
        return next((found for part in step.get("processors") or [] if (found := _around(part))), [])
    if step.get("type") != "TemplateProcessing":
        return []
    parts = step.get("single") or []
    return [part["SpecialToken"]["id"] if "SpecialToken" in part else "$A" for part in parts]


def _ends(
    directory: Path, settings: Mapping[str, Any], numbers: Mapping[str, int], config: ModelConfig, lost: list[str]
) -> dict[str, Any]:
    """The end tokens: that of the tokenizer first, then those of the configurations."""
    own = _number(settings.get("eos_token"), numbers)
    listed = settings.get("eos_token_ids")
    ends = [own, *config.eos_token_ids, *(listed if isinstance(listed, list) else []), *end_tokens(directory)]
    found = [number for number in dict.fromkeys(ends) if number is not None]
    if rest := found[len(ENDS) :]:
        lost.append(f"the end tokens {', '.join(map(str, rest))}, for which GGUF has no entry (bittorch reads its own)")
    return {f"tokenizer.ggml.{key}_token_id": number for key, number in zip(ENDS, found, strict=False)}


def _number(token: Any, numbers: Mapping[str, int]) -> int | None:
    text = _text(token)
    return None if text is None else numbers.get(text)


def _text(token: Any) -> str | None:
    """A special token as configurations write it: a text, or an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _templates(templates: Mapping[str, str]) -> dict[str, Any]:
    named = {"".join(c if c.isalnum() else "_" for c in name): text for name, text in templates.items()}
    entries: dict[str, Any] = {f"tokenizer.chat_template.{name}": t for name, t in named.items() if name != "default"}
    if entries:
        entries["tokenizer.chat_templates"] = sorted(set(named) - {"default"})
    return entries | ({"tokenizer.chat_template": named["default"]} if "default" in named else {})


def write_entries(entries: Mapping[str, Any], directory: Path) -> None:
    """Puts the tokenizer of a GGUF file into a directory: files of transformers where it has its tokenizer.json."""
    if not isinstance(entries.get(HF_JSON), str):
        if entries:
            (directory / GGUF_TOKENIZER).write_text(json.dumps(dict(entries)))
        return
    (directory / "tokenizer.json").write_text(entries[HF_JSON], encoding="utf-8", errors="surrogateescape")
    settings: dict[str, Any] = {}
    texts: dict[Any, str] = {number: text for text, number in numbers_of(json.loads(entries[HF_JSON])).items()}
    for name, key in SPECIAL.items():
        if (text := texts.get(entries.get(f"tokenizer.ggml.{key}_token_id"))) is not None:
            settings[name] = text
    ends = [entries[key] for kind in ENDS if (key := f"tokenizer.ggml.{kind}_token_id") in entries]
    if settings or ends:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, "eos_token_ids": ends}
        text = json.dumps(settings, ensure_ascii=False, indent=2)
        (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if isinstance(template := entries.get("tokenizer.chat_template"), str):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    for key, template in entries.items():
        name = key.removeprefix("tokenizer.chat_template.")
        if name != key and isinstance(template, str) and name.replace("_", "a").isalnum():
            (directory / TEMPLATES).mkdir(exist_ok=True)
            (directory / TEMPLATES / f"{name}.jinja").write_text(template, encoding="utf-8")
