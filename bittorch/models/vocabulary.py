"""Vocabularies of any origin as a `tokenizers.Tokenizer`."""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bittorch.models.pretokenizers import LLAMA3

# Types of pieces, as SentencePiece and GGUF number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
# Characters or bytes of a token. Vocabularies in use have at most some hundred; the work to find the merges of one
# token grows with the square of its length.
LONGEST = 1024
Text = TypeVar("Text", str, bytes)
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The vocabulary of a SentencePiece model.

    Args:
        texts: spaces are U+2581.
        scores: logarithms of probability for ``unigram``; for ``bpe`` the higher is merged first.
        types: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE each.
        unigram: else ``bpe``.
        add_prefix_space: whether a text begins with a space that it does not show.
        collapse_spaces: whether runs of spaces become one, and those at the ends none.
        charsmap: compiled normalisation rules of SentencePiece, or empty.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unigram: bool = False
    add_prefix_space: bool = True
    collapse_spaces: bool = False
    charsmap: bytes = b""


def byte_level(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], patterns: Sequence[str], whole_words: bool
) -> Tokenizer:
    """Byte-pair encoding over bytes, each written as the character that GPT-2 gave it.

    Args:
        vocab: numbers of tokens.
        merges: pairs, the first merged first.
        patterns: see `bittorch.models.pretokenizers`.
        whole_words: whether a word that is a token is taken without merging.
    """
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), ignore_merges=whole_words))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The character of each byte in a byte-level vocabulary: itself where it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def rank_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair whose concatenation is a token, by the rank of that: the merges that ranks imply."""
    return [pair for token in sorted(ranks, key=ranks.__getitem__) for pair in _pairs(token, ranks)]


def _pairs(token: Text, numbers: Mapping[Text, int]) -> list[tuple[Text, Text]]:
    """Every pair of tokens that together are this one, in the order of their numbers. Raises ValueError."""
    check_length(token, numbers[token])
    cuts = range(1, len(token))
    pairs = [(token[:i], token[i:]) for i in cuts if token[:i] in numbers and token[i:] in numbers]
    return sorted(pairs, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))


def check_length(token: str | bytes, number: int) -> None:
    """Raises ValueError for a token that no text needs and that would take minutes."""
    if len(token) > LONGEST:
        kind = "bytes" if isinstance(token, bytes) else "characters"
        raise ValueError(f"token {number} has {len(token)} {kind}, at most {LONGEST} are supported: {token[:20]!r}...")


def read_ranks(path: Path) -> dict[bytes, int]:
    """A tiktoken file: a line for each token, its bytes in base64 and its rank. Raises ValueError with the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line:
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"{path}, line {number} is no token in base64 and its rank: {line[:60]!r}") from None
    return ranks


def from_ranks(ranks: Mapping[bytes, int], special: Sequence[str] | None = None, pattern: str = LLAMA3) -> Tokenizer:
    """A byte-level vocabulary from tiktoken ranks.

    Args:
        ranks: of every token's bytes.
        special: tokens numbered from the end of ``ranks`` on; by default those of LLaMA 3, 256 in all.
        pattern: that cuts text into words.
    """
    characters = byte_characters()
    texts = {token: "".join(map(characters.__getitem__, token)) for token in ranks}
    merges = [(texts[left], texts[right]) for left, right in rank_merges(ranks)]
    tokenizer = byte_level({texts[token]: rank for token, rank in ranks.items()}, merges, (pattern,), True)
    if special is None:
        reserved = (f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(LLAMA3_SPECIAL)))
        special = (*LLAMA3_SPECIAL, *reserved)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def from_pieces(pieces: Pieces) -> Tokenizer:
    """A SentencePiece vocabulary, ``bpe`` or ``unigram``, bytes for what it has not where it has them.

    Raises:
        ValueError: a piece of more than `LONGEST` characters; those that are matched before others may have any length.
    """
    for number, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True)):
        if kind == NORMAL:
            check_length(text, number)
    unknown = next((i for i, kind in enumerate(pieces.types) if kind == UNKNOWN), None)
    fallback = BYTE in pieces.types
    if pieces.unigram:
        scored = list(zip(pieces.texts, map(float, pieces.scores), strict=True))
        model: Any = models.Unigram(scored, unknown, fallback)
    else:
        vocab = {text: i for i, text in enumerate(pieces.texts)}
        unk = None if unknown is None else pieces.texts[unknown]
        model = models.BPE(
            vocab=vocab, merges=_piece_merges(pieces, vocab), unk_token=unk, fuse_unk=True, byte_fallback=fallback
        )
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
        steps[0].normalize_str("a")  # damaged rules show when they are used
    if pieces.collapse_spaces:
        steps += [normalizers.Strip(True, True), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.add_prefix_space:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ending = [decoders.Strip(" ", 1, 0)] if pieces.add_prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    )
    add_by_type(tokenizer, pieces.texts, pieces.types)
    return tokenizer


def _piece_merges(pieces: Pieces, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair that makes a piece, by the score of that."""
    merges = []
    for text, score, kind in zip(pieces.texts, pieces.scores, pieces.types, strict=True):
        # A longer piece of the user's is an added token, which is found whole and needs no merges.
        if kind == NORMAL or (kind == USER_DEFINED and len(text) <= LONGEST):
            merges += [(score, pair) for pair in _pairs(text, vocab)]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]


def add_by_type(tokenizer: Tokenizer, texts: Sequence[str], types: Sequence[int]) -> None:
    """Makes control tokens special, and user-defined ones whole words of the text."""
    special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    added = [
        AddedToken(text, special=special[kind], normalized=False)
        for text, kind in zip(texts, types, strict=True)
        if kind in special and (text or special[kind])
    ]
    for is_special, run in itertools.groupby(added, key=lambda token: token.special):
        # Runs, not single tokens: the library builds the whole table of added tokens anew with each call.
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(list(run))


def begin_and_end(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Puts tokens around every text that is encoded with special tokens."""
    if bos is None and eos is None:
        return
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token is not None]
    before, after = f"{bos}:0 " if bos else "", f" {eos}:0" if eos else ""
    second_before, second_after = f" {bos}:1 " if bos else " ", f" {eos}:1" if eos else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A:0{after}",
        pair=f"{before}$A:0{after}{second_before}$B:1{second_after}",
        special_tokens=special,
    )
