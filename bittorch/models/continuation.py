"""What follows one prompt: tokens chosen from logits, their text, and when to end."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bittorch.models.engine import Stepper
from bittorch.models.generation_config import GenerationConfig
from bittorch.models.kv_cache import KVCache
from bittorch.models.sampling import History, draw, penalize
from bittorch.models.streaming import TextStream

if TYPE_CHECKING:
    from bittorch.models.tokenizer import Tokenizer


class Speaker(Stepper, Protocol):
    """What a generation needs of a model: `bittorch.models.LanguageModel` has it."""

    tokenizer: Tokenizer | None

    def new_cache(self, rows: int = 1, capacity: int | None = None) -> KVCache: ...


class Continuation:
    """One prompt and its answer. It depends on nothing but its own logits, whatever runs beside it.

    Args:
        model: whose tokenizer, end tokens and device these are.
        prompt: its tokens.
        config: how to choose, and when to end.
        context: tokens that are attended to.
        number: added to the seed, so that several answers to one request differ.

    Attributes:
        tokens: of the prompt, then of the answer.
        prompt_length: how many are the prompt's.
        stream: the text of the answer.
        finish_reason: None while the answer goes on; else ``eos``, ``stop``, ``length`` or ``context``.
    """

    def __init__(
        self, model: Speaker, prompt: list[int], config: GenerationConfig, context: int, number: int = 0
    ) -> None:
        self.config, self.context = config, context
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.finish_reason: str | None = None
        self._eos = end_tokens(model)
        # Not from torch's own generator, whose state is the caller's.
        seed = secrets.randbits(64) if config.seed is None else (config.seed + number) % 2**64
        self._generator = torch.Generator(model.device).manual_seed(seed)
        size = model.config.vocab_size
        self._history = History.of_prompt(prompt, size, model.device) if config.penalizes else None
        self.stream = TextStream(model.tokenizer, config.stop, config.skip_special_tokens)

    @property
    def answer(self) -> list[int]:
        """Its tokens, the end token included."""
        return self.tokens[self.prompt_length :]

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    def choose(self, logits: Tensor) -> int:
        """The next token, of ``(vocab_size,)`` float32."""
        if self._history is not None:
            logits = penalize(logits, self._history, self.config, self._eos)
        return draw(logits, self.config, self._generator)

    def push(self, token: int) -> str:
        """Takes the new token in, and says what text the answer gains; `finish_reason` says whether it ends."""
        self.tokens.append(token)
        if self._history is not None:
            self._history.add(token)
        text = self.stream.push(token)
        if self.stream.stopped:
            self.finish_reason = "stop"
        elif token in self._eos and not self.config.ignore_eos:
            self.finish_reason = "eos"
        elif self.answer_length >= self.config.max_new_tokens:
            self.finish_reason = "length"
        elif len(self.tokens) > self.context and self.config.overflow == "stop":
            self.finish_reason = "context"
        if self.finish_reason is not None:
            text += self.stream.finish()
            self.finish_reason = "stop" if self.stream.stopped else self.finish_reason
        return text

    def slid(self) -> list[int]:
        """The tokens from which an answer goes on that has outgrown the context."""
        kept, half = self.config.sliding_keep, self.context // 2
        return self.tokens[:kept] + self.tokens[len(self.tokens) - (half - kept) :]


def end_tokens(model: Speaker) -> list[int]:
    """Of configuration and tokenizer: chat models often end a turn with another token than a text.

    What the vocabulary lacks never comes.
    """
    own = model.tokenizer.eos_token_ids if model.tokenizer is not None else ()
    return sorted(token for token in {*model.config.eos_token_ids, *own} if 0 <= token < model.config.vocab_size)
