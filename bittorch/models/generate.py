"""Text from a model: one token after the other, for several prompts at once."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

import torch

from bittorch.models.continuation import Continuation, Speaker
from bittorch.models.engine import Engine, Running
from bittorch.models.generation_config import GenerationConfig
from bittorch.models.kv_cache import PrefixCache
from bittorch.models.sampling import check_logits
from bittorch.models.token_numbers import token_numbers


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one step adds to one answer.

    Args:
        index: of the prompt.
        text: may be empty, while characters are incomplete or a stop text may be beginning.
        token: the new token's number.
        finish_reason: None while the answer goes on; else ``eos``, ``stop``, ``length`` or ``context``.
    """

    index: int
    text: str
    token: int
    finish_reason: str | None


@dataclasses.dataclass
class GenerationStats:
    """Figures of a generation, all prompts together; times in seconds.

    Args:
        prompt_tokens, new_tokens: counts.
        kept_tokens: of the prompt's, those that a `PrefixCache` held.
        time_to_first_token: until the first token of every answer, which are one step; None before.
        decode_seconds: from there on, without the time in which the caller held a piece.
        decode_tokens: the tokens of that time.
        peak_bytes: most memory in use: the process's resident set on a CPU (where the system tells), else what torch
            allocated on the device.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    kept_tokens: int = 0
    time_to_first_token: float | None = None
    decode_seconds: float = 0.0
    decode_tokens: int = 0
    peak_bytes: int | None = None

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Of the tokens that were computed."""
        computed = self.prompt_tokens - self.kept_tokens
        return computed / self.time_to_first_token if self.time_to_first_token else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, after the first token."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else None


class Generation:
    """Answers to some prompts, as an iterator over pieces of them.

    Prompts of a batch need no padding. The greedy answer of each is the one it has alone where no product depends on
    the batch: packed layers, attention and norms do not, dense layers and a dense head may in the last bits.

    Args:
        model: with a tokenizer, unless every prompt is a list of token numbers and nothing asks for text.
        prompts: texts, or lists of token numbers, or one text. Texts get the special tokens that the tokenizer adds.
        config: how to choose, and when to end.
        prefix: for a single prompt, what an earlier generation left: the tokens with which the prompt begins are not
            computed again, and its capacity is a context. Tokens then differ from a fresh run only where two logits
            are as near as rounding: attention adds in another order for one new token than for many.

    Attributes:
        stats: figures so far.

    Raises:
        ValueError: no prompt, an empty one, one longer than the context, token numbers outside the vocabulary, text
            without a tokenizer. While running, FloatingPointError for logits that are not finite.
    """

    def __init__(
        self,
        model: Speaker,
        prompts: str | Sequence[str | Sequence[int]],
        config: GenerationConfig | None = None,
        *,
        prefix: PrefixCache | None = None,
    ) -> None:
        self.model, self.config, self.prefix = model, config or GenerationConfig(), prefix
        self.stats = GenerationStats()
        most = model.config.max_positions if prefix is None else min(prefix.cache.capacity, model.config.max_positions)
        self.context = min(most, self.config.context or most)
        if self.config.stop and model.tokenizer is None:
            raise ValueError("stop texts need a tokenizer, and the model has none")
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        if listed and isinstance(listed[0], int):
            raise TypeError("prompts is one list of token numbers; give a list of such lists")
        if not listed:
            raise ValueError("there is no prompt")
        if prefix is not None and len(listed) > 1:
            raise ValueError(f"a prefix cache is of one conversation, got {len(listed)} prompts")
        self._sequences = [self._sequence(index, prompt) for index, prompt in enumerate(listed)]
        self.stats.prompt_tokens = sum(sequence.prompt_length for sequence in self._sequences)
        self._pieces = self._run()

    @property
    def texts(self) -> list[str]:
        """The answers as far as they are made."""
        return [sequence.stream.text for sequence in self._sequences]

    @property
    def tokens(self) -> list[list[int]]:
        """The token numbers of the answers, end tokens included."""
        return [sequence.answer for sequence in self._sequences]

    @property
    def finish_reasons(self) -> list[str | None]:
        """Why each answer ended, as in `Piece`."""
        return [sequence.finish_reason for sequence in self._sequences]

    def run(self) -> Generation:
        """Generates to the end. Returns itself."""
        for _ in self:
            pass
        return self

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _sequence(self, index: int, prompt: str | Sequence[int]) -> Continuation:
        model = self.model
        tokens = token_numbers(prompt, model.tokenizer, model.config.vocab_size, f"prompt {index}")
        self._check_prompt(index, tokens)
        return Continuation(model, tokens, self.config, self.context, index)

    def _check_prompt(self, index: int, tokens: list[int]) -> None:
        config = self.config
        if len(tokens) > self.context:
            raise ValueError(
                f"prompt {index} has {len(tokens)} tokens, the context {self.context}; shorten it"
                + ("" if self.context == self.model.config.max_positions else " or allow a larger context")
            )
        if config.overflow == "error" and len(tokens) + config.max_new_tokens > self.context + 1:
            raise ValueError(  # the last token needs no place: nothing is predicted from it
                f"prompt {index} has {len(tokens)} tokens, which with max_new_tokens={config.max_new_tokens} outgrow "
                f"the context of {self.context}; ask for fewer, or allow overflow='slide'"
            )
        if config.overflow == "slide" and config.sliding_keep >= self.context // 2:
            raise ValueError(
                f"sliding_keep={config.sliding_keep} must be less than half of the context of {self.context}, of which "
                f"the last token is one"
            )

    def _run(self) -> Iterator[Piece]:
        engine, running = self._begin()
        while engine.running:
            begin = time.perf_counter()
            indexes = [running[sequence] for sequence in engine.running]
            active = [self._sequences[index] for index in indexes]
            for sequence, own in zip(engine.running, active, strict=True):
                if len(sequence.tokens) > self.context:
                    engine.restart(sequence, own.slid())
                    if self.prefix is not None:
                        self.prefix.tokens.clear()
            with torch.inference_mode():
                logits = engine.step().float()
                if self.prefix is not None:
                    held = self.prefix.tokens
                    held += engine.running[0].tokens[len(held) :]
                check_logits(logits, indexes, active[0].answer_length)
                new = [own.choose(logits[i]) for i, own in enumerate(active)]
            texts = [own.push(token) for own, token in zip(active, new, strict=True)]
            for sequence, own, token in zip(list(engine.running), active, new, strict=True):
                if own.finish_reason is None:
                    sequence.append(token)
                else:
                    engine.drop(sequence)
            self._count(len(new), time.perf_counter() - begin)
            for index, text, token, own in zip(indexes, texts, new, active, strict=True):
                yield Piece(index, text, token, own.finish_reason)

    def _begin(self) -> tuple[Engine, dict[Running, int]]:
        """An engine that has all prompts, by their indexes; its cache is for what is to come, or the one given."""
        _reset_peak(self.model.device)
        if self.prefix is not None:
            (own,) = self._sequences
            self.stats.kept_tokens = self.prefix.reuse(own.tokens)
            engine = Engine(self.model, self.prefix.cache)
            return engine, {engine.add(own.tokens, self.stats.kept_tokens): 0}
        longest = max(own.prompt_length for own in self._sequences) + self.config.max_new_tokens
        with torch.inference_mode():
            cache = self.model.new_cache(len(self._sequences), min(self.context, longest))
        engine = Engine(self.model, cache)
        return engine, {engine.add(own.tokens): index for index, own in enumerate(self._sequences)}

    def _count(self, tokens: int, seconds: float) -> None:
        stats = self.stats
        stats.new_tokens += tokens
        if stats.time_to_first_token is None:
            stats.time_to_first_token = seconds
        else:
            stats.decode_seconds += seconds
            stats.decode_tokens += tokens
        stats.peak_bytes = _peak_bytes(self.model.device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
