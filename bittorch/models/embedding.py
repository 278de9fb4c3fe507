"""Texts as vectors: the hidden states of a text's tokens, pooled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bittorch.models.batch import Batch
from bittorch.models.config import POOLINGS
from bittorch.models.decoder import Decoder


@torch.no_grad()
def embeddings(model: Decoder, sequences: Iterator[list[int]], pooling: str, batch_size: int = 32) -> Tensor:
    """See `LanguageModel.embed`; of token numbers."""
    if not pooling:
        raise ValueError(
            "the checkpoint does not say how the vectors of a text's tokens become one; give pooling, one of "
            f"{', '.join(POOLINGS)}"
        )
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r:.40}")
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r:.40}")
    every = list(sequences)
    found = [_batch(model, every[first : first + batch_size], pooling) for first in range(0, len(every), batch_size)]
    return torch.cat(found) if found else torch.empty(0, model.config.hidden_size, device=model.device)


def _batch(model: Decoder, sequences: Sequence[Sequence[int]], pooling: str) -> Tensor:
    counts = [len(tokens) for tokens in sequences]
    batch = Batch.of(counts, None)
    flat = torch.tensor([token for tokens in sequences for token in tokens], device=model.device)
    states = model.norm(model.hidden_states(flat, batch)).float()
    if pooling == "mean":
        pooled = torch.stack([own.mean(0) for own in states.split(counts)])
    else:
        last = batch.last(model.device)
        pooled = states[last if pooling == "last" else last + 1 - torch.tensor(counts, device=model.device)]
    if not bool(torch.isfinite(pooled).all()):
        raise FloatingPointError(
            "hidden states are not finite: the weights are damaged, or beyond the range of the dtype"
        )
    return F.normalize(pooled, dim=-1)
