"""What a tokenizer is made of, from the files of a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from bittorch.models.io import choices
from bittorch.models.io.errors import refuse_pointer
from bittorch.models.io.gguf_entries import check_tokenizer_entries
from bittorch.models.io.tokenizer_files import (
    checkpoint_file,
    numbered_tokens,
    read_json,
    templates_of,
    tokens_beside,
)
from bittorch.models.pretokenizers import BEGINS, DISPUTED, PATTERNS, WHOLE_WORDS, patterns_of
from bittorch.models.sentencepiece_model import read_model
from bittorch.models.vocabulary import (
    CONTROL,
    NORMAL,
    Pieces,
    add_by_type,
    begin_and_end,
    byte_level,
    from_pieces,
    from_ranks,
    read_ranks,
)

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
GGUF_ENTRIES = "gguf_tokenizer.json"  # what `bittorch.models.io` makes of a GGUF file's tokenizer in a directory
TEMPLATE = "tokenizer.chat_template"  # the entry of a GGUF file; further ones have a name behind it
HF_JSON = "tokenizer.huggingface.json"  # the entry of a GGUF file that holds a tokenizer.json
# Tokens that end a text or a turn by their names: files often name one alone. Source: llama.cpp.
_TURN_ENDS = """
<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|> </s> <EOT>
_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""  # the last line is of code: what pads, and where the next file or repository begins
TURN_ENDS = frozenset({*_TURN_ENDS.split(), "<\uff5cend\u2581of\u2581sentence\uff5c>"})
# Where a vocabulary has all of the first, the second ends no turn.
NO_END_BESIDE = (
    (("<|return|>", "<|call|>"), "<|end|>"),
    (("<|return|>", "<|calls|>"), "<|end|>"),
    (("<|call|>", "<|flush|>"), "<|end|>"),
    (("<|calls|>", "<|flush|>"), "<|end|>"),
    (("<|tool_response>",), "</s>"),
)
# Numbers of control tokens where a file does not say; as in llama.cpp.
DEFAULT_IDS = {("llama", "bos"): 1, ("llama", "eos"): 2, ("t5", "eos"): 1}
LLAMA3_SIZE, LLAMA3_BEGIN = 128256, (128000, "<|begin_of_text|>")


class TokenizerParts(NamedTuple):
    """The arguments of `bittorch.models.Tokenizer`, in its order."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    eos_token_ids: list[int]
    chat_template: str | None
    more_templates: dict[str, str]


def from_source(source: Path | str | Mapping[str, Any]) -> TokenizerParts:
    """See `Tokenizer.from_source`."""
    if isinstance(source, Mapping):
        with damage_of("the GGUF file"):
            return from_gguf(source)
    with damage_of(str(source)):
        return from_directory(Path(source))


def is_panic(error: BaseException) -> bool:
    """Whether an error is a failed assertion inside the tokenizers library, which is no `Exception` in Python."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def damage_of(what: str) -> Iterator[None]:
    """Values of unexpected types, and whatever the tokenizers library makes of them, as ValueError."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"the tokenizer of {what} is damaged: {type(error).__name__}: {error}") from None


def from_directory(path: Path) -> TokenizerParts:
    """The tokenizer that lies in a directory. See `Tokenizer.from_source`."""
    if (path / GGUF_ENTRIES).is_file():
        return from_gguf(read_json(path, GGUF_ENTRIES))
    config = read_json(path, "tokenizer_config.json")
    mapped = read_json(path, "special_tokens_map.json")  # where older files alone have them
    special = {name: _text(token) for name in NAMES if (token := config.get(name) or mapped.get(name))}
    if checkpoint_file(path, "tokenizer.json"):
        backend = _parsed((path / "tokenizer.json").read_text(encoding="utf-8"), str(path / "tokenizer.json"))
        _add_numbered(backend, path)
    elif checkpoint_file(path, "tokenizer.model"):
        backend, special = _from_model_file(path / "tokenizer.model", special, config)
    else:
        raise FileNotFoundError(f"{path} has neither tokenizer.json nor tokenizer.model")
    ends = [
        *_listed(config.get("eos_token_ids")),
        *_listed(read_json(path, "generation_config.json").get("eos_token_id")),
    ]
    end = special.get("eos_token")
    if end is not None and backend.token_to_id(end) is None:
        choices.warn(
            "tokenizer-tokens",
            f"{path} has the eos_token {end!r:.100}, which is no token of its vocabulary: no answer ends with it. Give "
            "it its number in added_tokens_decoder of tokenizer_config.json",
        )
    templates = templates_of(path)
    return TokenizerParts(backend, special, ends, templates.pop("default", None), templates)


def _add_numbered(backend: tokenizers.Tokenizer, directory: Path, pieces: bool = False) -> None:
    """Adds the tokens that a directory numbers beside its vocabulary, as transformers does, each with its number.

    ``pieces``: of SentencePiece, whose programs find such tokens in the text as it is, whatever ``normalized`` says.
    """
    numbers, added = backend.get_vocab(with_added_tokens=True), backend.get_added_tokens_decoder()
    numbered = numbered_tokens(directory)
    more, lost = tokens_beside(numbers, numbered)
    # Some are in the vocabulary, but only as what merges make.
    whole = [token for n, token in numbered.items() if numbers.get(token["content"]) == n and n not in added]
    tokens = []
    for token in [*whole, *more]:
        flags = {name: value for name, value in token.items() if name not in ("id", "content")}
        tokens.append(tokenizers.AddedToken(token["content"], **(flags | {"normalized": False} if pieces else flags)))
    backend.add_tokens(tokens)
    if lost:
        some = "; ".join(f"{text!r:.60} {why}" for text, why in list(lost.items())[:5])
        choices.warn(
            "tokenizer-tokens",
            f"{directory} numbers {len(lost)} added tokens in another way than its vocabulary: {some}. The vocabulary "
            "is taken; correct tokenizer_config.json or added_tokens.json",
        )


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Puts the name of a file before the ValueErrors about it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(what) else f"{what}: {text}") from None


def _parsed(text: str, what: str) -> tokenizers.Tokenizer:
    refuse_pointer(text[:64].encode(errors="replace"), what)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{what} is no tokenizer: {error}") from None


def _from_model_file(
    path: Path, special: dict[str, str], config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Tiktoken ranks, which are lines of text, or a SentencePiece model, which is not."""
    data = path.read_bytes()[:64]
    refuse_pointer(data, str(path))
    head = data.split(b"\n")[0].split()
    if len(head) == 2 and head[1].isdigit():
        with _naming(str(path)):
            backend = from_ranks(read_ranks(path), _numbered_tokens(config))
        _add_numbered(backend, path.parent)
        special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", **special}
        begin_and_end(backend, special["bos_token"], None)
        return backend, special
    pieces = read_model(path.read_bytes(), str(path))
    with _naming(str(path)):
        backend = from_pieces(pieces)
    _add_numbered(backend, path.parent, pieces=True)
    for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")):
        if token in pieces.texts:
            special.setdefault(name, token)
    bos = special.get("bos_token") if config.get("add_bos_token", True) else None
    eos = special.get("eos_token") if config.get("add_eos_token", False) else None
    begin_and_end(backend, bos, eos)
    return backend, special


def _numbered_tokens(config: Mapping[str, Any]) -> list[str] | None:
    """Special tokens as the configuration numbers them, or None."""
    entries = config.get("added_tokens_decoder")
    if not isinstance(entries, dict) or not entries:
        return None
    return [_text(entries[number]) for number in sorted(entries, key=int)]


def from_gguf(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that a GGUF file carries. See `Tokenizer.from_source`."""
    kind = metadata.get("tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in metadata:
        raise ValueError("the GGUF file carries no tokenizer: it has no tokenizer.ggml.tokens")
    texts = list(metadata["tokenizer.ggml.tokens"])
    types = [int(value) for value in metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(texts))]
    if len(types) != len(texts):
        raise ValueError(f"the GGUF file has {len(texts)} tokens and {len(types)} token types")
    check_tokenizer_entries(metadata)
    ends = _ends(metadata, texts)
    types = [CONTROL if number in ends else own for number, own in enumerate(types)]
    special = {}
    for name, key in zip(NAMES, ("bos", "eos", "unknown", "padding"), strict=True):
        default = DEFAULT_IDS.get((str(kind), key))
        default = default if default is not None and types[default : default + 1] == [CONTROL] else None
        number = metadata.get(f"tokenizer.ggml.{key}_token_id", default)
        if number is not None and 0 <= int(number) < len(texts):
            special[name] = texts[int(number)]
    if isinstance(metadata.get(HF_JSON), str):
        backend, begins = _parsed(metadata[HF_JSON], f"the entry {HF_JSON} of the GGUF file"), None
    elif kind == "gpt2":
        backend, begins = _gguf_byte_level(metadata, texts, types)
    elif kind in ("llama", "t5"):
        backend, begins = _gguf_pieces(metadata, texts, types, kind == "t5"), kind == "llama"
    else:
        raise ValueError(f"the vocabulary kind {kind!r} of the GGUF file is not read; known are gpt2, llama and t5")
    if begins is not None:  # a tokenizer.json has its own rule
        bos = special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", begins) else None
        eos = special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", kind == "t5") else None
        begin_and_end(backend, bos, eos)
    named = {key.removeprefix(f"{TEMPLATE}."): text for key, text in metadata.items() if key.startswith(f"{TEMPLATE}.")}
    return TokenizerParts(backend, special, ends, metadata.get(TEMPLATE), named)


def _ends(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[int]:
    """Tokens that end a text or a turn, by the entries of a GGUF file and by their names."""
    found = {text: number for number, text in enumerate(texts) if text in TURN_ENDS}
    for beside, text in NO_END_BESIDE:
        if all(name in found for name in beside):
            found.pop(text, None)
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep"))
    given = [int(metadata[key]) for key in keys if key in metadata]
    return list(dict.fromkeys([*(number for number in given if 0 <= number < len(texts)), *sorted(found.values())]))


def _pre_tokenizer(metadata: Mapping[str, Any], texts: Sequence[str]) -> str:
    """The name of how text is cut into words: of the file, else by the vocabulary, else llama.cpp's default."""
    name = metadata.get("tokenizer.ggml.pre")
    if name in DISPUTED:
        choices.warn(
            "gguf-disputed-pre-tokenizer",
            f"the GGUF file says tokenizer.ggml.pre {name!r}, which not all programs read alike: text is "
            f"{DISPUTED[name]}. The tokenizer.json of the model says what it was trained with",
        )
    if name is not None:
        return str(name)
    where = "the GGUF file does not say how its tokenizer cuts text into words (tokenizer.ggml.pre)"
    number, text = LLAMA3_BEGIN
    if len(texts) == LLAMA3_SIZE or texts[number : number + 1] == [text]:
        choices.warn("gguf-pre-tokenizer", f"{where}. Its vocabulary is that of LLaMA 3, so 'llama-bpe' is taken")
        return "llama-bpe"
    choices.warn(
        "gguf-pre-tokenizer",
        f"{where}. 'default' is taken, as llama.cpp does: IF IT IS ANOTHER, TEXT IS TOKENIZED WRONGLY AND THE MODEL'S "
        f"ANSWERS ARE WORSE. Give pre_tokenizer=, one of {', '.join(PATTERNS)}",
    )
    return "default"


def _gguf_byte_level(
    metadata: Mapping[str, Any], texts: Sequence[str], types: Sequence[int]
) -> tuple[tokenizers.Tokenizer, bool]:
    name = _pre_tokenizer(metadata, texts)
    merges = []
    if "tokenizer.ggml.merges" not in metadata:
        raise ValueError(
            "the GGUF file has a byte-level vocabulary (tokenizer.ggml.model gpt2) without tokenizer.ggml.merges, so "
            "text would be cut into single bytes; convert the model again, or use the tokenizer.json of its directory"
        )
    for line in metadata["tokenizer.ggml.merges"]:
        left, _, right = line.partition(" ")
        if not left or not right:
            raise ValueError(f"the GGUF file has the merge {line!r}, which is no pair")
        merges.append((left, right))
    vocab = {text: number for number, text in enumerate(texts)}
    try:
        backend = byte_level(vocab, merges, patterns_of(name), name in WHOLE_WORDS)
    except Exception as error:  # the library raises nothing narrower for a merge of what is no token
        raise ValueError(f"the vocabulary of the GGUF file: {error}") from None
    add_by_type(backend, texts, types)
    return backend, name in BEGINS


def _gguf_pieces(
    metadata: Mapping[str, Any], texts: Sequence[str], types: Sequence[int], unigram: bool
) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(texts):
        raise ValueError(
            f"the GGUF file has {len(texts)} tokens and {0 if scores is None else len(scores)} scores, which a "
            f"SentencePiece vocabulary needs"
        )
    pieces = Pieces(
        texts,
        [float(score) for score in scores],
        types,
        unigram,
        bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", unigram)),
        bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", b"")),
    )
    with _naming("the vocabulary of the GGUF file"):
        return from_pieces(pieces)


def _text(token: Any) -> str:
    """Special tokens are texts, or objects with one."""
    return token["content"] if isinstance(token, dict) else str(token)


def _listed(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, list) else [int(value)]
