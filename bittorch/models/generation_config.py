"""How text is generated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

MOST_PENALTY = 1e6  # float32 holds what it makes of any logit


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to choose tokens, and when to end.

    Args:
        max_new_tokens: of each answer.
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: tokens that may be drawn; 0 for all.
        top_p, typical_p: probability mass of those that may be drawn; 1 for all.
        min_p: least probability, as a share of the highest; 0 for all.
        repetition_penalty: of tokens in prompt or answer; 1 for none, above it they become less likely. Penalties are
            at most 1e6, and factors at least 1e-6.
        frequency_penalty, presence_penalty: taken from the logit of a token in the answer, for each time and once.
        length_penalty: growth of the logits of end tokens per token behind ``length_penalty_start``; 1 for none,
            above it answers become shorter.
        length_penalty_start: tokens of the answer before that.
        stop: texts that end an answer, and do not belong to it.
        ignore_eos: go on after tokens that end a text.
        seed: of the draws, any integer; prompt i has ``seed + i`` (modulo 2^64), so that its answer does not depend on
            its company. None draws differently each time.
        context: tokens that are attended to; None for what the model was trained for.
        overflow: what happens where prompt and answer outgrow the context. ``slide`` goes on from the
            ``sliding_keep`` first tokens and as many of the last as fill half of the context, encoded anew: what would
            come from these tokens as a prompt. ``stop`` ends the answer, ``error`` refuses such a request beforehand.
        sliding_keep: first tokens that ``slide`` keeps, such as those of a system prompt.
        skip_special_tokens: leave end tokens and the like out of the text.

    Raises:
        ValueError: a value out of its range; the message has both.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    length_penalty: float = 1.0
    length_penalty_start: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    context: int | None = None
    overflow: Literal["slide", "stop", "error"] = "slide"
    sliding_keep: int = 0
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop must hold texts of at least one character, got {text!r}")
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("length_penalty_start", 0), ("sliding_keep", 0)):
            _integer(name, getattr(self, name), least)
        if self.context is not None:
            _integer("context", self.context, 2)
        if self.seed is not None:
            _integer("seed", self.seed, None)
        _within("temperature", self.temperature, 0, math.inf)
        _within("min_p", self.min_p, 0, 1)
        for name in ("top_p", "typical_p"):
            _within(name, getattr(self, name), 0, 1, above=True)
        for name in ("repetition_penalty", "length_penalty"):
            _within(name, getattr(self, name), 1 / MOST_PENALTY, MOST_PENALTY)
        for name in ("frequency_penalty", "presence_penalty"):
            _within(name, getattr(self, name), -MOST_PENALTY, MOST_PENALTY)
        if self.overflow not in ("slide", "stop", "error"):
            raise ValueError(f"overflow must be slide, stop or error, got {self.overflow!r}")

    def changed(self, **changes: Any) -> GenerationConfig:
        """A copy with other values. Raises TypeError for names that it has not."""
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            raise TypeError(f"GenerationConfig has no {', '.join(unknown)}; it has {', '.join(self.__match_args__)}")
        return dataclasses.replace(self, **changes) if changes else self

    @property
    def penalizes(self) -> bool:
        """Whether a penalty is in force."""
        plain = self.repetition_penalty == self.length_penalty == 1
        return not plain or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def unfiltered(self) -> bool:
        """Whether every token may be drawn."""
        return not self.top_k and self.top_p == self.typical_p == 1 and not self.min_p


def _integer(name: str, value: object, least: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise ValueError(f"{name} must be an integer{'' if least is None else f' of at least {least}'}, got {value!r}")


def _within(name: str, value: object, low: float, high: float, above: bool = False) -> None:
    """A finite number in the range, whose ends belong to it except, with ``above``, the lower one."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        span = f"{'above' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high != math.inf else "")
        raise ValueError(f"{name} must be a finite number {span}, got {value!r}")
