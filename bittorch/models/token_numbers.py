"""What a caller gives a model to read: texts, or lists of token numbers."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bittorch.models.tokenizer import Tokenizer


def token_numbers(given: Any, tokenizer: Tokenizer | None, vocab_size: int, what: str) -> list[int]:
    """The token numbers of a text or of a list of them.

    Args:
        given: a text, which gets the special tokens that the tokenizer adds, or integers.
        tokenizer: None where text is not wanted.
        vocab_size: of the model.
        what: names the text in errors.

    Raises:
        TypeError: neither text nor integers.
        ValueError: text without a tokenizer; no token; numbers outside the vocabulary.
    """
    if isinstance(given, str):
        if tokenizer is None:
            raise ValueError(f"{what} is text, and the model has no tokenizer; give token numbers")
        tokens = tokenizer.encode(given)
    else:
        if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
            raise TypeError(f"{what} must be a text or a list of token numbers, got {type(given).__name__}")
        try:
            tokens = [operator.index(token) for token in given]
        except TypeError as error:
            raise TypeError(f"{what} must be a text or a list of token numbers: {error}") from None
    if not tokens:
        raise ValueError(f"{what} is empty; give at least one token")
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        low, high = min(tokens), max(tokens)
        raise ValueError(f"{what} has token numbers from {low} to {high}, the vocabulary 0 to {vocab_size - 1}")
    return tokens
