"""Perplexity: how many tokens a model hesitates between, on average, as it reads a text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bittorch.models.batch import Batch
from bittorch.models.language_model import LanguageModel

_CHUNK = 128  # tokens whose logits are in memory at once


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Args:
        value: ``exp(nll / tokens)``.
        nll: sum of the negative log-likelihoods, in nats.
        tokens: scored ones: all but the first, and with ``stride = window`` but the first of every window.
        window, stride: as measured.
    """

    value: float
    nll: float
    tokens: int
    window: int
    stride: int


def windows(count: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end, and first scored token of each window over ``count`` tokens.

    Every token is scored once, but those at the beginning of a window that none before has reached.
    """
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        if end > scored:
            yield begin, end, max(scored, begin + 1)
            scored = end
        if end == count:
            return


def perplexity(
    model: LanguageModel,
    text: str | Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """``exp(-1/T sum_t log p(x_t | the tokens of its window before x_t))``.

    A window of tokens is read from position 0 on, its last ``stride`` tokens are scored, and it moves on by ``stride``;
    the first scores all of its tokens but the first. Each token is scored once, after at least ``window - stride``
    tokens (in the first window fewer); the first token of a text, and with ``stride = window`` of each window, has none
    before it and is not. A small stride gives each more context and takes longer; ``stride = window`` is
    the fastest and gives the highest value. Compare values of one tokenizer, window and stride only.

    Args:
        model: with a tokenizer, if ``text`` is one.
        text: of any length, or its token numbers. No special tokens are added.
        window: tokens; None for the smaller of the model's context and 1024.
        stride: tokens; None for half of the window.
        max_tokens: read only so many of the first; None for all.
        progress: called after each window with tokens scored, tokens in all, and the value so far.

    Raises:
        ValueError: fewer than two tokens, a window beyond the context, a stride beyond the window; text without a
            tokenizer.
        FloatingPointError: likelihoods that are not finite.

    Source:
        The strided window of "Perplexity of fixed-length models" in the documentation of transformers, averaged over
        tokens.
    """
    context = model.config.max_positions
    window = min(context, 1024) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 2 <= window <= context:
        raise ValueError(f"window must be from 2 to the context of {context} tokens, got {window}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to window={window}, got {stride}")
    ids = _ids(model, text)[:max_tokens]
    if len(ids) < 2:
        raise ValueError(f"perplexity needs at least two tokens, got {len(ids)}")
    tokens = torch.tensor(ids, device=model.device)
    nll, count = 0.0, 0
    for begin, end, first in windows(len(ids), window, stride):
        nll += _nll(model, tokens[begin:end], first - begin)
        count += end - first
        if not math.isfinite(nll):
            raise FloatingPointError(
                f"the likelihood of tokens {first} to {end} is not finite; the checkpoint is damaged or activations "
                f"overflow their dtype: try dtype float32"
            )
        if progress:
            progress(count, len(ids) - 1, _exp(nll / count))
    return Perplexity(_exp(nll / count), nll, count, window, stride)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:  # of a model that is far off
        return math.inf


def _ids(model: LanguageModel, text: str | Sequence[int]) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; give token numbers")
    return model.tokenizer.encode(text, add_special_tokens=False)


@torch.inference_mode()
def _nll(model: LanguageModel, tokens: Tensor, first: int) -> float:
    """Of the tokens from ``first`` on, given those before each; summed in float64."""
    hidden = model.hidden_states(tokens[:-1], Batch.of([len(tokens) - 1], None))[first - 1 :]
    total = 0.0
    for rows, targets in zip(hidden.split(_CHUNK), tokens[first:].split(_CHUNK), strict=True):
        total += float(F.cross_entropy(model.logits(rows).float(), targets, reduction="none").double().sum())
    return total
