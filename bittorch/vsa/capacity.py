"""What to expect of a record: how like a value is to what is read back, and how often the right item is found."""

from __future__ import annotations

import math
import operator

import torch


def _checked(**sizes: int) -> tuple[int, ...]:
    values = tuple(operator.index(value) for value in sizes.values())
    for name, value in zip(sizes, values, strict=True):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    return values


def _binomial(n: int) -> float:
    """The largest probability of a sum of ``n`` coins."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(n // 2 + 1) - math.lgamma(n - n // 2 + 1) - n * math.log(2))


def _moments(pairs: int) -> tuple[float, float]:
    """Of a trit of the bundle times the value's own: the mean, and the probability that it is not a tie."""
    return _binomial(pairs - 1), 1.0 if pairs % 2 else 1 - _binomial(pairs)


def expected_similarity(pairs: int) -> float:
    """The mean cosine of a vector with the bundle of ``pairs`` random vectors that it is one of.

    ``c / sqrt(p)`` with ``c = C(n - 1, (n - 1) // 2) / 2^(n - 1)``, the probability that the others leave the trit to
    this one, and ``p`` the share of trits that are no tie; near ``sqrt(2 / (pi n))`` for many.
    """
    (count,) = _checked(pairs=pairs)
    mean, used = _moments(count)
    return mean / math.sqrt(used)


def expected_accuracy(dimension: int, pairs: int, items: int) -> float:
    """How often a clean-up finds the right one of ``items`` when one key of a record is unbound.

    ``integral phi(t) Phi(m + s t)^(items - 1) dt``: the right item's dot product has mean ``dimension c`` and variance
    ``dimension (p - c^2)``, each other one's mean 0 and variance ``dimension p``, as in `expected_similarity`; ``m``
    and ``s`` are mean and deviation of the right one in deviations of the others. Normal distributions, so for
    dimensions of a hundred and more; keys and items random, without zeros.

    Raises:
        ValueError: a size below 1.

    Source: Frady, Kleyko and Sommer 2018, "A theory of sequence indexing and working memory in recurrent neural
    networks", for sums; here with the sums cut to trits.
    """
    width, count, others = _checked(dimension=dimension, pairs=pairs, items=items)
    mean, used = _moments(count)
    at, deviation = math.sqrt(width / used) * mean, math.sqrt(max(1 - mean**2 / used, 0.0))
    t = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    below = torch.special.log_ndtr(at + deviation * t) * (others - 1)
    return min(1.0, float(torch.trapezoid(density * below.exp(), t)))
