import numpy as np
import pytest

from bittorch import vsa
from bittorch.array import TernaryArray


def test_clean_up_is_a_search_of_dense_cosines() -> None:
    vectors, queries = vsa.random(9, 601, zeros=0.3, seed=0), vsa.random((2, 3), 601, zeros=0.1, seed=1)
    vectors[4] = 0
    memory = vsa.ItemMemory(vectors)
    a, b = queries.to_numpy().astype(float), vectors.to_numpy().astype(float)
    cosines = a @ b.T / np.linalg.norm(a, axis=-1, keepdims=True) / np.maximum(np.linalg.norm(b, axis=-1), 1)
    np.testing.assert_allclose(memory.similarities(queries), cosines, rtol=1e-5, atol=1e-7)
    for k in (1, 3):
        found = memory.clean_up(queries, k)
        expected = np.argsort(-cosines, axis=-1)[..., :k]
        np.testing.assert_array_equal(found.indices, expected)
        np.testing.assert_allclose(found.similarities, np.take_along_axis(cosines, expected, -1), rtol=1e-5)
    assert memory.clean_up(queries[0, 0]).indices.shape == (1,)
    assert memory.clean_up(queries[:0]).indices.shape == (0, 3, 1)


def test_names() -> None:
    memory = vsa.ItemMemory([[1, 1, -1], [-1, 0, 1]], ["a", ("b", 2)])
    assert memory[("b", 2)].tolist() == [-1, 0, 1]
    assert memory[["a", "a"]].tolist() == [[1, 1, -1]] * 2
    assert memory.name_of([-1, 1, 1]) == ("b", 2)
    assert "a" in memory
    assert "c" not in memory
    assert (len(memory), memory.dimension) == (2, 3)
    assert "2 items, dimension=3" in repr(memory)
    with pytest.raises(KeyError, match="c"):
        memory["c"]


def test_the_memory_keeps_its_own_vectors() -> None:
    vectors = TernaryArray([[1, 1], [1, -1]])
    memory = vsa.ItemMemory(vectors)
    vectors[...] = 0
    assert memory.vectors.tolist() == [[1, 1], [1, -1]]
    assert memory.name_of([1, -1]) == 1


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"one vector or more, got shape \(0, 5\)"):
        vsa.ItemMemory.random([], 5)
    with pytest.raises(ValueError, match=r"vectors must be \(n, dimension\), got shape \(1, 2, 3\)"):
        vsa.ItemMemory(np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match=r"got 7 at index \(1, 0\)"):
        vsa.ItemMemory([[1, 0], [7, 0]])
    with pytest.raises(ValueError, match="a name for each vector, got 1 and 2"):
        vsa.ItemMemory([[1], [0]], ["a"])
    with pytest.raises(ValueError, match="names must differ, got 'a' twice"):
        vsa.ItemMemory([[1], [0]], "aa")
    memory = vsa.ItemMemory.random("ab", 6, seed=0)
    with pytest.raises(ValueError, match="vectors and items must have one dimension, got 5 and 6"):
        memory.clean_up([1, 1, 1, 1, 1])
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k must be from 1 to the 2 items, got {k}"):
            memory.clean_up(memory["a"], k)
    with pytest.raises(ValueError, match=r"vector must be \(6,\), got shape \(1, 6\)"):
        memory.name_of(memory[["a"]])
