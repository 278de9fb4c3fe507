"""One answer of a model: the prompt's tokens in, text out as it comes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from bittorch.cli.console import rate_text, size_text
from bittorch.cli.errors import CommandError

if TYPE_CHECKING:
    from bittorch.models import GenerationConfig, GenerationStats, LanguageModel, PrefixCache

Message = dict[str, str]


@dataclasses.dataclass
class Answer:
    """What came of a prompt.

    Args:
        text: as far as it came.
        finish_reason: ``eos``, ``stop``, ``length``, ``context``, or ``interrupted``.
        stats: figures of the generation.
    """

    text: str
    finish_reason: str | None
    stats: GenerationStats

    def object(self) -> dict[str, Any]:
        """For JSON."""
        return {"text": self.text, "finish_reason": self.finish_reason, "stats": self.figures()}

    def figures(self) -> dict[str, Any]:
        """Counts, times in seconds, bytes."""
        stats = self.stats
        return {
            "prompt_tokens": stats.prompt_tokens,
            "kept_tokens": stats.kept_tokens,
            "new_tokens": stats.new_tokens,
            "time_to_first_token": stats.time_to_first_token,
            "prefill_tokens_per_second": stats.prefill_tokens_per_second,
            "decode_tokens_per_second": stats.tokens_per_second,
            "peak_bytes": stats.peak_bytes,
        }

    def line(self) -> str:
        """The figures for people."""
        stats = self.stats
        first = stats.time_to_first_token
        kept = f" ({stats.kept_tokens} of them kept)" if stats.kept_tokens else ""
        parts = [
            f"{stats.prompt_tokens} tokens in{kept}, {stats.new_tokens} out",
            "first token after " + ("-" if first is None else f"{first:.2f} s"),
            f"prefill {rate_text(stats.prefill_tokens_per_second)}",
            f"decode {rate_text(stats.tokens_per_second)}",
        ]
        if stats.peak_bytes is not None:
            parts.append(f"peak memory {size_text(stats.peak_bytes)}")
        return ", ".join(parts)


def prompt_tokens(model: LanguageModel, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
    """A question as the model was trained to see it.

    Args:
        model: with a tokenizer.
        text: the prompt.
        system: what the model should be, where its chat template knows that.
        raw: no template; also where the model has none.

    Raises:
        CommandError: an empty prompt, bytes that are no UTF-8, or a system text without a template.
    """
    check_text(text)
    if raw or not has_template(model):
        if system is not None:
            why = "--raw takes none" if raw else "the model has none"
            raise CommandError(f"a system text needs a chat template, and {why}")
        return encode(model, text)
    return chat_tokens(model, [*system_message(system), {"role": "user", "content": text}])


def check_text(text: str, what: str = "the prompt") -> None:
    """Raises CommandError for what no model can read."""
    if not text.strip():
        raise CommandError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CommandError(f"{what} is not UTF-8 at character {error.start}: {text[error.start]!r}") from None


def system_message(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def has_template(model: LanguageModel) -> bool:
    """Whether the model is one to chat with."""
    assert model.tokenizer is not None
    return model.tokenizer.chat_template is not None


def encode(model: LanguageModel, text: str) -> list[int]:
    """Tokens of plain text."""
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def chat_tokens(model: LanguageModel, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation, up to where the model's answer begins."""
    assert model.tokenizer is not None
    return model.tokenizer.encode_chat(messages)


def generate(
    model: LanguageModel,
    tokens: list[int],
    config: GenerationConfig,
    show: Callable[[str], None],
    prefix: PrefixCache | None = None,
    waiting: Callable[[str], AbstractContextManager[None]] = lambda text: nullcontext(),
) -> Answer:
    """Generates to the end.

    Args:
        model: any.
        tokens: the prompt.
        config: how.
        show: is given each piece of text.
        prefix: keys and values of the conversation so far.
        waiting: what to do while the prompt is read.

    Raises:
        KeyboardInterrupt: as it comes; `Interrupted` holds what was generated until then.
    """
    generation = model.stream([tokens], config, prefix=prefix)
    try:
        with waiting(f"reading {len(tokens)} tokens"):
            first = list(itertools.islice(generation, 1))
        for piece in itertools.chain(first, generation):
            if piece.text:
                show(piece.text)
    except KeyboardInterrupt:
        raise Interrupted(Answer(generation.texts[0], "interrupted", generation.stats)) from None
    return Answer(generation.texts[0], generation.finish_reasons[0], generation.stats)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an answer, with the part that was there."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
