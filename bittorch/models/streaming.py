"""Text that grows token by token, in whole characters, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, such as the first half of one


class Decodes(Protocol):
    """What a text needs of a tokenizer."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...


class Detokenizer:
    """Decodes tokens one at a time; what it gave so far and what it gives at the end are the decoded whole.

    A token's text can depend on those before it (the first one loses its leading space in some vocabularies), and a
    character can take several tokens. So the last few tokens are decoded again, together with the new one.
    """

    def __init__(self, tokenizer: Decodes, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._tokens: list[int] = []
        self._given = 0  # tokens before this one have been given as text
        self._prefix = 0  # from here on they are decoded once more, as context of the next

    def push(self, token: int) -> str:
        """The text that is certain now, often empty inside a character."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._given < 8:
            return ""  # a character has at most 4 bytes: what is still broken after 8 tokens is broken
        return self._give(text)

    def finish(self) -> str:
        """The rest, with U+FFFD for what is no character."""
        return self._give(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._prefix : self._given], skip_special_tokens=self._skip)
        return self._tokenizer.decode(self._tokens[self._prefix :], skip_special_tokens=self._skip)[len(before) :]

    def _give(self, text: str) -> str:
        if text:
            self._prefix, self._given = self._given, len(self._tokens)
        return text


class TextStream:
    """The text of an answer, held back where a stop text may be beginning.

    Args:
        tokenizer: None gives no text.
        stop: texts that end the answer and are cut off.
        skip_special_tokens: leave them out.

    Attributes:
        text: given so far.
        stopped: whether a stop text came.
    """

    def __init__(self, tokenizer: Decodes | None, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, skip_special_tokens)
        self._stop = tuple(stop)
        self._held = ""
        self.text, self.stopped = "", False

    def push(self, token: int) -> str:
        """The text that this token adds."""
        return self._take(self._detokenizer.push(token), False) if self._detokenizer else ""

    def finish(self) -> str:
        """The text that was held back, once no token follows."""
        return self._take(self._detokenizer.finish(), True) if self._detokenizer else ""

    def _take(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        found = [held.index(text) for text in self._stop if text in held]
        if found:
            self.stopped, self._held = True, ""
            given = held[: min(found)]
        else:
            keep = 0 if last else max((_overlap(held, text) for text in self._stop), default=0)
            given, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += given
        return given


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
