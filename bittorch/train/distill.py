"""Losses that pull a ternary student towards a full-precision teacher; add them to the loss of any loop.

The teacher runs under ``torch.no_grad()`` in ``eval()``; no loss here sends a gradient to it. On data without labels,
also text that the teacher wrote itself, `logits_kl` alone is a loss.

>>> with torch.no_grad():
...     target = teacher(x)
>>> loss = F.cross_entropy(student(x), y) + 0.5 * bittorch.train.distill.logits_kl(student(x), target, temperature=2)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention_relation", "feature_cosine", "logits_kl"]


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of student and teacher must match, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _zero(student: Tensor) -> Tensor:
    """What a loss over nothing is: 0, with a graph. ``student`` is empty."""
    return student.sum().to(torch.promote_types(student.dtype, torch.float32))


def _widened(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that the loss is computed in, float32 at least; the teacher without a graph."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all but the last dimension of ``KL(softmax(teacher) || softmax(student))`` of `_widened` logits."""
    if student.numel() == 0:
        return _zero(student)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    # Classes that a mask excludes for both have log 0 on both sides, whose difference is NaN.
    return divergence.masked_fill(log_p == -torch.inf, 0).sum(-1).mean()


def logits_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """``T^2 mean KL(softmax(teacher / T) || softmax(student / T))`` over tokens or samples.

    Args:
        student, teacher: ``(..., classes)`` logits; the teacher gets no gradient.
        temperature: above 1 softens both; ``T^2`` keeps the size of the gradient.
        mask: ``(...)`` bool, True where a token counts (padding does not).

    Returns:
        A scalar in float32, or in the dtype of ``student`` where that is wider; 0 where nothing counts.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive and finite.

    Source: Hinton et al. 2015.
    """
    _same_shape(student, teacher, "logits")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if mask is not None:
        if mask.shape != student.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool {tuple(student.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
        student, teacher = student[mask], teacher[mask]
    student, teacher = _widened(student, teacher)
    return temperature**2 * _kl(student / temperature, teacher / temperature)


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean(1 - cos(student, teacher))`` over all but the last dimension: direction counts, size does not.

    Args:
        student, teacher: ``(..., features)`` hidden states; project one of them where widths differ.

    Returns:
        A scalar as `logits_kl`; 0 for an empty batch.

    Raises:
        ValueError: shapes that differ.

    Source: Sanh et al. 2019 (DistilBERT).
    """
    _same_shape(student, teacher, "features")
    if student.numel() == 0:
        return _zero(student)
    return (1 - F.cosine_similarity(*_widened(student, teacher), dim=-1)).mean()


def attention_relation(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """``mean KL`` between the relations of tokens: ``softmax(s s^T / sqrt(d))`` for each of ``heads`` heads.

    Give it queries, keys or values, one call each; student and teacher may have other widths and numbers of heads.

    Args:
        student: ``(batch, tokens, width)``; ``heads`` divides the width.
        teacher: ``(batch, tokens, width)`` of its own width, divided likewise.
        heads: relation heads, for both.
        mask: ``(batch, tokens)`` bool, True for tokens that count, as queries and as keys.

    Returns:
        A scalar as `logits_kl`; 0 where nothing counts.

    Raises:
        ValueError: other shapes, or widths that ``heads`` does not divide.

    Source: Wang et al. 2021 (MiniLMv2), Wu et al. 2025 (BitDistill).
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"states must be (batch, tokens, width) of the same batch and tokens, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if heads < 1 or any(states.shape[2] < 1 or states.shape[2] % heads for states in (student, teacher)):
        raise ValueError(f"heads must divide both widths, got heads={heads}, {student.shape[2]} and {teacher.shape[2]}")
    relations = []
    # Outside autocast, and scaled before the product: squares of a few large features leave float16's range.
    with torch.autocast(student.device.type, enabled=False):
        for states in _widened(student, teacher):
            per_head = states.unflatten(2, (heads, -1)).transpose(1, 2)
            relations.append(per_head / per_head.shape[3] ** 0.5 @ per_head.transpose(2, 3))
    ours, theirs = relations
    if mask is None:
        return _kl(ours, theirs)
    if mask.shape != student.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(student.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    keys = ~mask[:, None, None, :]
    ours, theirs = ours.masked_fill(keys, -torch.inf), theirs.masked_fill(keys, -torch.inf)
    queries = mask[:, None, :].expand(ours.shape[:3])
    return _kl(ours[queries], theirs[queries])
