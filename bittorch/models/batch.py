"""Which tokens of a step belong to which sequence."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.kv_cache import KVCache
from bittorch.models.rope import Rotation


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of any lengths, their new tokens one behind the other without padding.

    Args:
        counts: new tokens of each sequence.
        past: tokens of each that the cache holds.
        rows: each one's row of the cache.
        cache: None where keys and values are not kept.
    """

    counts: tuple[int, ...]
    past: tuple[int, ...]
    rows: tuple[int, ...]
    cache: KVCache | None

    @classmethod
    def of(cls, counts: Sequence[int], cache: KVCache | None, rows: Sequence[int] | None = None) -> Batch:
        """Checks counts and rows against the cache. Raises ValueError."""
        if not counts or min(counts) < 1:
            raise ValueError(f"every sequence must bring at least one token, got {list(counts)}")
        rows = tuple(range(len(counts)) if rows is None else rows)
        if len(rows) != len(counts) or len(set(rows)) != len(rows):
            raise ValueError(f"rows must name a row of the cache for each of {len(counts)} sequences, got {list(rows)}")
        if cache is None:
            return cls(tuple(counts), (0,) * len(counts), rows, None)
        cache.check_room(rows, counts)
        return cls(tuple(counts), tuple(cache.lengths[row] for row in rows), rows, cache)

    @functools.cached_property
    def views(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of an even batch: what of the cache is written and read, for each layer."""
        assert self.even
        assert self.cache is not None
        return self.cache.views(self.past[0], self.lengths[0])

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, the new ones included."""
        return tuple(past + count for past, count in zip(self.past, self.counts, strict=True))

    @functools.cached_property
    def most(self) -> int:
        """New tokens of the sequence that has most."""
        return max(self.counts)

    @functools.cached_property
    def least(self) -> int:
        """Earlier tokens of the sequence that has fewest."""
        return min(self.past)

    @functools.cached_property
    def layers(self) -> tuple[Tensor, ...]:
        """Keys and values of each layer of the cache, ``(2, rows, kv_heads, capacity, head_dim)``."""
        assert self.cache is not None
        return self.cache.data.unbind()

    def store(self, layer: int, heads: Tensor, turns: Rotation | None) -> None:
        """Turns new queries and keys in place and stores keys and values, as `bittorch.ops.rotary_store` does."""
        cos, sin = (None, None) if turns is None else turns.angles
        ops.rotary_store(heads, self.layers[layer], cos, sin, self.lengths, self.rows, self.counts)

    def write(self, layer: int, kv: Tensor) -> None:
        """Stores the keys and values of all new tokens, ``(tokens, 2, kv_heads, head_dim)``."""
        assert self.cache is not None
        if self.even:
            self.views[0][layer].copy_(kv.unflatten(0, (len(self.counts), -1)).permute(2, 0, 3, 1, 4))
            return
        for row, part in zip(self.rows, kv.split(self.counts), strict=True):
            self.cache.write(layer, row, part)

    @functools.cached_property
    def even(self) -> bool:
        """Whether all sequences can be attended to in one call: equal lengths, and all rows of the cache in order."""
        same = len(set(self.counts)) == 1 and len(set(self.past)) == 1
        return same and (self.cache is None or self.rows == tuple(range(self.cache.rows)))

    def positions(self, device: torch.device) -> Tensor:
        """``(tokens,)`` of int64: the place of each new token in its sequence."""
        if len(self.counts) == 1 or self.even:
            one = torch.arange(self.past[0], self.lengths[0], device=device)
            return one.repeat(len(self.counts)) if len(self.counts) > 1 else one
        if self.most == 1:
            return torch.tensor(self.past, device=device)
        pairs = zip(self.past, self.counts, strict=True)
        return torch.cat([torch.arange(past, past + count, device=device) for past, count in pairs])

    def last(self, device: torch.device) -> Tensor:
        """``(sequences,)`` of int64: where the last new token of each stands."""
        return torch.tensor(self.counts, device=device).cumsum(0) - 1
