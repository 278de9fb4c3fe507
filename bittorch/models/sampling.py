"""From logits to one token: penalties, filters, a draw."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from bittorch.models.generation_config import GenerationConfig

MOST_GROWTH = 60.0  # exponent of the length penalty: its product with a logit stays below what float32 holds
MANY = 1024  # tokens among which a filter by probability mostly chooses
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-30, 1e30  # float32 divides by both; what is beyond draws as they do
LEAST_MASS = 1e-30  # is above 0 in float32, so that the likeliest token always stays


@dataclasses.dataclass
class History:
    """Which tokens a sequence has, counted where a penalty asks for it.

    Args:
        seen: ``(vocab_size,)`` bool, tokens of prompt or answer.
        counts: ``(vocab_size,)`` float32, how often each is in the answer.
        length: tokens of the answer.
    """

    seen: Tensor
    counts: Tensor
    length: int = 0

    @classmethod
    def of_prompt(cls, prompt: list[int], vocab_size: int, device: torch.device) -> History:
        seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        seen[torch.tensor(prompt, device=device)] = True
        return cls(seen, torch.zeros(vocab_size, device=device))

    def add(self, token: int) -> None:
        self.seen[token] = True
        self.counts[token] += 1
        self.length += 1


def penalize(logits: Tensor, history: History, config: GenerationConfig, eos: list[int]) -> Tensor:
    """Logits after the penalties, in this order.

    repetition p: ``l / p`` for positive, ``l * p`` for negative logits of tokens in prompt or answer
    (arXiv:1909.05858); frequency f and presence s: ``l - f * count - s * [count > 0]``, counted in the answer; length
    p, from the answer's token number ``length_penalty_start`` on: ``l + |l| * (p^(length - start) - 1)`` for the tokens
    that end a text.

    Args:
        logits: ``(vocab_size,)`` float32.
        history: of the sequence.
        config: the penalties.
        eos: tokens that end a text.
    """
    if config.repetition_penalty != 1:
        p = config.repetition_penalty
        logits = torch.where(history.seen, torch.where(logits < 0, logits * p, logits / p), logits)
    if config.frequency_penalty or config.presence_penalty:
        present = history.counts > 0
        logits = logits - config.frequency_penalty * history.counts - config.presence_penalty * present
    over = history.length - config.length_penalty_start
    if config.length_penalty != 1 and over > 0 and eos:
        logits = logits.clone()
        growth = math.exp(min(over * math.log(config.length_penalty), MOST_GROWTH))
        logits[eos] += logits[eos].abs() * (growth - 1)
    return logits


def candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, likeliest first, and their probabilities, which sum to 1.

    After ``softmax(logits / temperature)``, each filter working on what the one before has left, renormalised:
    top_k keeps the k likeliest; top_p the fewest of the likeliest whose probabilities reach p (arXiv:1904.09751);
    min_p those of at least p times the highest probability (arXiv:2407.01082); typical_p the fewest whose surprise is
    nearest to the entropy and whose probabilities reach p (arXiv:2202.00666). At least one token stays.

    Args:
        logits: ``(vocab_size,)`` float32.
        config: temperature above 0, and filters.

    Returns:
        token numbers (int64) and probabilities (float32) of equal length.
    """
    p = _scaled(logits, config.temperature).softmax(0)
    if 0 < config.top_k < len(p):
        p, tokens = p.topk(config.top_k)
        p = p / p.sum()
    else:
        p, tokens = _likeliest(p, config)
    if config.top_p < 1:
        before = p.cumsum(0) - p  # of the likelier ones: the token that crosses the limit stays
        tokens, p = _keep(before < max(config.top_p, LEAST_MASS), tokens, p)
    if config.min_p > 0:
        tokens, p = _keep(p >= config.min_p * p[0], tokens, p)
    if config.typical_p < 1:
        tokens, p = _keep(_typical(p, config.typical_p), tokens, p)
    return tokens, p


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature, the highest 0, so that none overflows however cold it is, or is NaN however hot."""
    return (logits - logits.max()) / min(max(temperature, LEAST_TEMPERATURE), MOST_TEMPERATURE)


def _likeliest(p: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Probabilities in descending order and their tokens; only `MANY` where top_p or min_p leaves no more of them.

    Sorting a vocabulary takes as long as a fifth of a small model's step.
    """
    if len(p) > MANY and (config.top_p < 1 or config.min_p > 0):
        first, tokens = p.topk(MANY)
        if bool(first[:-1].sum() >= config.top_p) or bool(first[-1] < config.min_p * first[0]):
            return first, tokens
    return p.sort(descending=True, stable=True)


def _keep(mask: Tensor, tokens: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    tokens, p = tokens[mask], p[mask]
    return tokens, p / p.sum()


def _typical(p: Tensor, mass: float) -> Tensor:
    surprise = -p.log()
    entropy = torch.special.entr(p).sum()
    order = (surprise - entropy).abs().argsort(stable=True)
    sorted_p = p[order]
    before = sorted_p.cumsum(0) - sorted_p
    return torch.zeros_like(p, dtype=torch.bool).index_put((order,), before < max(mass, LEAST_MASS))


def draw(logits: Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    """One token: the likeliest at temperature 0, else drawn from `candidates`."""
    if config.temperature == 0:
        return int(logits.argmax())
    if config.unfiltered:
        p = _scaled(logits, config.temperature).softmax(0)
        return int(torch.multinomial(p, 1, generator=generator))
    tokens, p = candidates(logits, config)
    return int(tokens[torch.multinomial(p, 1, generator=generator)])


def log_probabilities(logits: Tensor, token: int, most: int) -> tuple[float, list[tuple[int, float]]]:
    """How likely a token was, as ``log softmax(logits)``, before temperature, filters and penalties.

    Args:
        logits: ``(vocab_size,)`` float32.
        token: the one that was chosen.
        most: of the likeliest tokens, how many are wanted.

    Returns:
        natural logarithms: that of the token, and the likeliest tokens with theirs, in descending order.
    """
    logs = logits.log_softmax(0)
    best, tokens = logs.topk(min(most, len(logs)))
    return float(logs[token]), list(zip(tokens.tolist(), best.tolist(), strict=True))


def sound_rows(logits: Tensor) -> list[bool]:
    """Whether the largest value of each row is finite; it is NaN wherever the row has one."""
    return torch.isfinite(logits.amax(-1)).tolist()


def check_logits(logits: Tensor, indexes: list[int], position: int) -> None:
    """Raises FloatingPointError where a row has no largest finite value; indexes are those of the prompts."""
    sound = sound_rows(logits)
    if not all(sound):
        row = sound.index(False)
        raise FloatingPointError(
            f"the logits of prompt {indexes[row]} hold {float(logits[row].amax())} after {position} new tokens; "
            f"the checkpoint is damaged or activations overflow their dtype: try dtype float32"
        )
