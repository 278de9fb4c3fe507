"""Random programs on arrays and views that share trits, beside NumPy's on int8."""

from typing import Any

import numpy as np
import pytest

from bittorch.array import TernaryArray
from tests.array.arrays import assert_same


def _key(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    key: list[Any] = []
    for n in shape[: rng.integers(len(shape) + 1)]:
        start, stop, step = rng.integers(-5, 6, 3).tolist()
        rows = rng.integers(-n, n, 3).tolist() if n else []
        kinds = [slice(start, stop, step or 1), slice(None, None, -1), None, rows, rng.random(n) < 0.5, *rows[:1]]
        key.append(kinds[rng.integers(len(kinds))])
    return (*key, ...) if rng.random() < 0.3 else tuple(key)


def _step(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A function of two arrays that may write to the first, for trits and for int8."""
    key, axes = _key(rng, shape), rng.permutation(len(shape)).tolist()
    value = int(rng.integers(-1, 2))
    steps = [
        lambda a, b: a[key],
        lambda a, b: a.__setitem__(key, value),
        lambda a, b: a.__setitem__(key, b.copy()),
        lambda a, b: a.__setitem__(slice(1, None), a[:-1]),
        lambda a, b: a.__setitem__(..., a[::-1]),
        lambda a, b: a.transpose(axes),
        lambda a, b: np.flip(a)[...] if a.ndim else a,
        lambda a, b: a.reshape(-1).copy(),
        lambda a, b: a * b,
        lambda a, b: np.multiply(a, b, out=a),
        lambda a, b: np.minimum(a, b, out=a, where=b > 0),
        lambda a, b: np.concatenate([a, b], axis=value),
        lambda a, b: np.where(a > b, a, b),
        lambda a, b: np.copyto(a, b, where=b > a),
        lambda a, b: np.split(a, [value, 1])[1],
        lambda a, b: a.sum(axis=value),
        lambda a, b: np.tensordot(a, b, 1).astype(np.int64),
    ]
    return steps[rng.integers(len(steps))]


def _result(step: Any, a: Any, b: Any) -> Any:
    try:
        return step(a, b)
    except (IndexError, TypeError, ValueError):
        return "refused"


@pytest.mark.parametrize("seed", range(3))
def test_programs_give_what_numpy_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool: list[Any] = []
    for _ in range(150):
        if rng.random() < 0.2 or len(pool) < 3:
            new = rng.integers(-1, 2, rng.choice([1, 2, 3, 4, 8], rng.integers(1, 4)), np.int8)
            pool.append((TernaryArray(new), new))
        (a, dense_a), (b, dense_b) = (pool[i] for i in rng.integers(len(pool), size=2))
        step = _step(rng, a.shape)
        expected = _result(step, dense_a, dense_b)
        actual = _result(step, a, b)
        assert isinstance(actual, str) == isinstance(expected, str)
        if expected is not None and not isinstance(expected, str):
            np.testing.assert_array_equal(np.asarray(actual), expected)
            if isinstance(actual, TernaryArray) and isinstance(expected, np.ndarray) and actual.size < 300:
                pool.append((actual, expected))
        pool = pool[-8:]
        for trits, dense in pool:
            assert_same(trits, dense)
