"""A memory of named vectors that finds the one a noisy vector was."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bittorch import ops
from bittorch.array import TernaryArray
from bittorch.array.reductions import rows_of
from bittorch.vsa.similarity import squares_of
from bittorch.vsa.vectors import Seed, check_same_dimension, random, rows_of_vectors, vectors_of


class Found(NamedTuple):
    """What `ItemMemory.clean_up` found: ``(..., k)`` numbers of items and their cosines, the likest first."""

    indices: NDArray[np.int64]
    similarities: NDArray[np.float32]


class ItemMemory:
    """Named vectors. ``memory[name]`` is a vector, `clean_up` finds the likest by one product with all of them.

    Args:
        vectors: ``(n, dimension)``; copied.
        names: ``n`` different ones; None is 0 to n - 1.

    Raises:
        ValueError: no vectors, another number of names, a name twice, values that are no trits.
    """

    def __init__(self, vectors: Any, names: Iterable[Hashable] | None = None) -> None:
        array = rows_of_vectors("vectors", vectors)
        if array.ndim != 2:
            raise ValueError(f"vectors must be (n, dimension), got shape {array.shape}")
        self.vectors = array.copy()
        self.names = tuple(range(len(array)) if names is None else names)
        if len(self.names) != len(array):
            raise ValueError(f"there must be a name for each vector, got {len(self.names)} and {len(array)}")
        self._number = {name: i for i, name in enumerate(self.names)}
        if len(self._number) != len(array):
            twice = next(name for i, name in enumerate(self.names) if self._number[name] != i)
            raise ValueError(f"names must differ, got {twice!r} twice")
        self._planes = ops.bitplane_pack(rows_of(self.vectors, self.dimension), self.dimension)
        self._norms = torch.from_numpy(squares_of(self.vectors)).sqrt().float()

    @classmethod
    def random(cls, names: Iterable[Hashable], dimension: int, *, seed: Seed = None) -> ItemMemory:
        """A memory of a random vector without zeros for each name: symbols, roles, keys."""
        chosen = tuple(names)
        return cls(random(len(chosen), dimension, seed=seed), chosen)

    @property
    def dimension(self) -> int:
        """Trits of a vector."""
        return self.vectors.shape[-1]

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._number

    def __getitem__(self, names: Any) -> TernaryArray:
        """The vector of a name, ``(dimension,)``, or those of a list of names, ``(n, dimension)``.

        Raises:
            KeyError: a name that is not there.
        """
        if isinstance(names, list):
            return self.vectors[[self._number[name] for name in names]]
        return self.vectors[self._number[names]]

    def similarities(self, vectors: Any) -> NDArray[np.float32]:
        """Cosines of vectors ``(..., dimension)`` with all items, ``(..., n)`` float32."""
        array, scores = self._scores(vectors)
        similarities: NDArray[np.float32] = scores.reshape(*array.shape[:-1], len(self)).numpy()
        return similarities

    def _scores(self, vectors: Any) -> tuple[TernaryArray, torch.Tensor]:
        array = vectors_of("vectors", vectors)
        check_same_dimension(vectors=array, items=self.vectors)
        rows = rows_of(array, self.dimension)
        dots = ops.bitplane_matmul(rows, self._planes, self.dimension, "planes")
        own = torch.from_numpy(np.atleast_1d(squares_of(array))).sqrt().float().reshape(-1, 1)
        return array, dots / self._norms / own

    def clean_up(self, vectors: Any, k: int = 1) -> Found:
        """The ``k`` items that are likest to each vector, by cosine.

        Args:
            vectors: ``(..., dimension)``; many at a time cost less each.
            k: from 1 to the number of items.

        Returns:
            ``(..., k)`` int64 numbers of items and float32 cosines. Items that are equally alike come in any order.

        Raises:
            ValueError: another dimension, ``k`` out of range, values that are no trits.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be from 1 to the {len(self)} items, got {k}")
        array, scores = self._scores(vectors)
        best, at = scores.topk(k) if k > 1 else scores.max(1, keepdim=True)
        shape = (*array.shape[:-1], k)
        return Found(at.numpy().reshape(shape), best.numpy().reshape(shape))

    def name_of(self, vector: Any) -> Hashable:
        """The name of the item that is likest to one vector, ``(dimension,)``."""
        array = vectors_of("vector", vector)
        if array.ndim != 1:
            raise ValueError(f"vector must be ({self.dimension},), got shape {array.shape}")
        return self.names[int(self.clean_up(array).indices[0])]

    def __repr__(self) -> str:
        return f"ItemMemory({len(self)} items, dimension={self.dimension}, {self.vectors.nbytes} bytes)"
