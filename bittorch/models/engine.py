"""Sequences that a model reads and continues, side by side: what `generate` and servers stand on. No text, no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bittorch.models.config import ModelConfig
from bittorch.models.kv_cache import KVCache


class Stepper(Protocol):
    """What an engine needs of a model: `bittorch.models.decoder.Decoder` has it."""

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...

    def step(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        cache: KVCache | None = None,
        *,
        rows: Sequence[int] | None = None,
        last_only: bool = False,
    ) -> Tensor: ...


@dataclasses.dataclass(eq=False)
class Running:
    """A sequence in an engine.

    Args:
        tokens: what its row of the cache holds, and what is pending.
        row: of the cache.
        pending: the last of the tokens, which the next step reads.
    """

    tokens: list[int]
    row: int
    pending: list[int]

    def append(self, token: int) -> None:
        """Goes on with a token, which the next step reads."""
        self.tokens.append(token)
        self.pending.append(token)


class Engine:
    """Steps of a model over sequences that come and go.

    A sequence has a row of the cache from `add` to `drop`; the lowest free row is taken, and what it held is forgotten.

    Args:
        model: gives logits.
        cache: its rows are how many sequences there can be at once, its capacity how long each can become.

    Attributes:
        running: the sequences, in the order of their rows.

    Example::

        engine = Engine(model, model.new_cache(rows=8, capacity=512))
        sequence = engine.add(tokens)
        while not ended(sequence):
            (logits,) = engine.step()
            sequence.append(int(logits.argmax()))
        engine.drop(sequence)
    """

    def __init__(self, model: Stepper, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.running: list[Running] = []

    @property
    def free(self) -> list[int]:
        """The rows that no sequence has, in order."""
        taken = {sequence.row for sequence in self.running}
        return [row for row in range(self.cache.rows) if row not in taken]

    def add(self, tokens: Sequence[int], held: int = 0, row: int | None = None) -> Running:
        """A new sequence.

        Args:
            tokens: at least one.
            held: how many of the first the free row holds already, at most all but one; the rest of the row is cut.
            row: a free row; None for the lowest.

        Raises:
            ValueError: no token, more held than there is, no free row, one that is not free; a row that cannot be cut
                there, as `bittorch.models.KVCache.keepable` says.
        """
        free = self.free
        if not free:
            raise ValueError(f"all {self.cache.rows} rows of the cache have a sequence; drop one first")
        row = free[0] if row is None else row
        if row not in free:
            raise ValueError(f"row {row} is not free; the free rows are {free}")
        if not 0 <= held < len(tokens):
            raise ValueError(f"a sequence of {len(tokens)} tokens cannot have {held} held: one at least must be new")
        self.cache.truncate(row, held)
        sequence = Running(list(tokens), row, list(tokens[held:]))
        self.running = sorted([*self.running, sequence], key=lambda sequence: sequence.row)
        return sequence

    def restart(self, sequence: Running, tokens: Sequence[int]) -> None:
        """Has the next step read these tokens from position 0 on, in place of all that the sequence has."""
        self.cache.truncate(sequence.row, 0)
        sequence.tokens, sequence.pending = list(tokens), list(tokens)

    def step(self, counts: Mapping[Running, int] | None = None) -> Tensor:
        """Reads what is pending.

        Args:
            counts: the sequences that take part, in the order of `running`, and how many pending tokens each reads;
                None for all that is pending.

        Returns:
            ``(sequences that take part, vocab_size)``: what follows the last token that each has read, in the model's
            dtype.

        Raises:
            ValueError: no sequence, one that reads nothing or more than is pending, no room in the cache, token
                numbers outside the vocabulary.
        """
        if counts is None:
            counts = {sequence: len(sequence.pending) for sequence in self.running}
        for sequence, count in counts.items():
            if count > len(sequence.pending):
                raise ValueError(f"row {sequence.row} has {len(sequence.pending)} tokens pending, cannot read {count}")
        read = [token for sequence, count in counts.items() for token in sequence.pending[:count]]
        rows = [sequence.row for sequence in counts]
        tokens = torch.tensor(read, device=self.model.device)
        logits = self.model.step(tokens, list(counts.values()), self.cache, rows=rows, last_only=True)
        for sequence, count in counts.items():
            del sequence.pending[:count]
        return logits

    def drop(self, sequence: Running) -> None:
        """Ends a sequence; its row keeps what it holds until another takes it. Raises ValueError if it is not here."""
        self.running.remove(sequence)
