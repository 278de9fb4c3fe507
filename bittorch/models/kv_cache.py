"""Keys and values of the tokens that a model has seen, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.models.config import ModelConfig


class DeltaStates:
    """What the DeltaNet layers of a model remember of each row, however long it is.

    Args:
        config: the model's.
        rows, device, dtype: as of `KVCache`.

    Attributes:
        window: ``(layers, rows, kernel - 1, channels)`` of dtype: the last inputs of the convolutions.
        matrix: ``(layers, rows, value_heads, key_dim, value_dim)`` float32.
    """

    def __init__(
        self, config: ModelConfig, rows: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        layers, heads = config.delta_layers, config.delta_value_heads
        window = (layers, rows, config.delta_kernel - 1, config.delta_channels)
        self.window = torch.zeros(window, device=device, dtype=dtype)
        matrix = (layers, rows, heads, config.delta_key_dim, config.delta_value_dim)
        self.matrix = torch.zeros(matrix, device=device, dtype=torch.float32)

    def of(self, layer: int, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Window and matrix of these rows; the matrix is a view for all rows in order, else a copy."""
        index, matrix = list(rows), self.matrix[layer]
        return self.window[layer][index], matrix if self._whole(rows) else matrix[index]

    def put(self, layer: int, rows: tuple[int, ...], window: Tensor, matrix: Tensor) -> None:
        """Stores what a layer remembers of these rows: a new window, and the matrix of `of`, with new values."""
        self.window[layer][list(rows)] = window
        if not self._whole(rows):
            self.matrix[layer][list(rows)] = matrix

    def _whole(self, rows: tuple[int, ...]) -> bool:
        return rows == tuple(range(self.matrix.shape[1]))

    def forget(self, rows: Sequence[int]) -> None:
        """Puts rows back to their beginning."""
        for row in rows:
            self.window[:, row].zero_()
            self.matrix[:, row].zero_()


class KVCache:
    """A static cache: ``rows`` sequences of up to ``capacity`` tokens each.

    Every row begins at slot 0, whatever its length: rows of a batch need no padding, and what a row attends to lies as
    it would lie if the row were alone.

    Args:
        config: the model's.
        rows: sequences.
        capacity: tokens a sequence can hold.
        device: of all of it.
        dtype: of the model.
        kv_dtype: of keys and values; None for that of the model.

    Attributes:
        lengths: tokens that each row holds.
        states: what DeltaNet layers remember; None where a model has none.

    Raises:
        ValueError: sizes below 1.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        if rows < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one row and one token, got rows={rows}, capacity={capacity}")
        self.capacity = capacity
        self.lengths = [0] * rows
        # Keys and values of a layer side by side, so that one copy writes both.
        shape = (config.num_layers - config.delta_layers, 2, rows, config.num_kv_heads, capacity, config.head_dim)
        self.data = torch.empty(shape, device=device, dtype=dtype if kv_dtype is None else kv_dtype)
        self.states = DeltaStates(config, rows, device, dtype) if config.delta_layers else None
        self._begun: set[int] = set()

    @property
    def rows(self) -> int:
        """Rows of the cache, one per sequence."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states."""
        return self.data.nbytes + (self.states.window.nbytes + self.states.matrix.nbytes if self.states else 0)

    def check_room(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Raises ValueError where these rows have no room for that many more tokens each."""
        for row, count in zip(rows, counts, strict=True):
            if not 0 <= row < self.rows:
                raise ValueError(f"the cache has {self.rows} rows, got tokens for row {row}")
            held = self.lengths[row]
            if held + count > self.capacity:
                raise ValueError(
                    f"row {row} of the cache holds {held} of {self.capacity} tokens, no room for {count} more; make it "
                    f"with a larger capacity, or drop tokens with truncate"
                )
            if row in self._begun:
                raise ValueError(
                    f"a step on row {row} of the cache was broken off, and some layers have its tokens; cut the row to "
                    "0 with truncate, and read its tokens again"
                )

    def begin(self, rows: Sequence[int]) -> None:
        """Says that layers write tokens of these rows; where they cannot be cut back, only `advance` ends it."""
        if self.states is not None:
            self._begun.update(rows)
            self.states.forget([row for row in rows if self.lengths[row] == 0])

    def write(self, layer: int, row: int, kv: Tensor) -> Tensor:
        """Stores new keys and values behind those of the row.

        Args:
            layer, row: where.
            kv: ``(tokens, 2, kv_heads, head_dim)``.

        Returns:
            All keys and values of the row, ``(2, kv_heads, length, head_dim)``, a view.
        """
        begin = self.lengths[row]
        end = begin + kv.shape[0]
        slots = self.data[layer, :, row]
        slots[:, :, begin:end] = kv.permute(1, 2, 0, 3)
        return slots[:, :, :end]

    def views(self, begin: int, end: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Where the tokens from ``begin`` to ``end`` go in every row, and all up to there; for each layer.

        Returns:
            views ``(2, rows, kv_heads, end - begin, head_dim)`` to be written, ``(2, rows, kv_heads, end, head_dim)``
            to be read. One call makes those of all layers, which is cheaper than slices in each.
        """
        return self.data.narrow(4, begin, end - begin).unbind(), self.data.narrow(4, 0, end).unbind()

    def advance(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Counts tokens as held that every layer has written."""
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        self._begun.difference_update(rows)

    def keepable(self, row: int, length: int) -> int:
        """How many of the first ``length`` tokens of a row can stay; with DeltaNet layers 0, unless they are all."""
        whole = length == self.lengths[row] and row not in self._begun
        return length if self.states is None or whole else 0

    def truncate(self, row: int, length: int) -> None:
        """Forgets the tokens of a row from ``length`` on."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens and cannot be cut to {length}")
        if self.keepable(row, length) != length:
            raise ValueError(
                f"row {row} holds {self.lengths[row]} tokens, and the model has DeltaNet layers, which remember no "
                f"beginning of them: it cannot be cut to {length}; cut it to 0, and read the tokens again"
            )
        if length == 0:
            self._begun.discard(row)
        self.lengths[row] = length


def held_beginning(prompt: Sequence[int], held: Sequence[int]) -> int:
    """How many tokens at the beginning of a prompt are those that are held, all but its last at most."""
    most = min(len(prompt) - 1, len(held))
    return next((i for i in range(most) if prompt[i] != held[i]), most)


class PrefixCache:
    """What one conversation has in the cache, so that its next turn computes only what is new.

    Args:
        cache: of one row; `LanguageModel.new_cache` makes it.

    Attributes:
        tokens: whose keys and values the cache holds.

    Raises:
        ValueError: a cache of several rows, or one that holds something.
    """

    def __init__(self, cache: KVCache) -> None:
        if cache.rows != 1 or cache.lengths[0]:
            raise ValueError(
                f"a prefix cache needs one empty row, got {cache.rows} rows holding {cache.lengths} tokens"
            )
        self.cache = cache
        self.tokens: list[int] = []

    def reuse(self, prompt: Sequence[int]) -> int:
        """Keeps the tokens with which the prompt begins, all but its last at most. Returns their number.

        A model with DeltaNet layers keeps all that it has, or nothing.
        """
        common = min(held_beginning(prompt, self.tokens), self.cache.lengths[0])
        common = self.cache.keepable(0, common)
        self.cache.truncate(0, common)
        del self.tokens[common:]
        return common
