import itertools
import math

import numpy as np
import pytest

from bittorch import vsa


def test_expected_similarity_is_the_mean_over_all_bundles() -> None:
    for pairs in (1, 2, 3, 4, 7, 8):
        trits = np.array(list(itertools.product((-1, 1), repeat=pairs)))
        signs = np.sign(trits.sum(1))
        cosine = (signs * trits[:, 0]).mean() / math.sqrt((signs**2).mean())
        assert vsa.expected_similarity(pairs) == pytest.approx(cosine, rel=1e-12)
    assert vsa.expected_similarity(1001) == pytest.approx(math.sqrt(2 / (math.pi * 1001)), rel=1e-3)


def test_records_are_read_back_as_often_as_expected() -> None:
    for dimension, pairs, items in ((500, 51, 100), (1_000, 60, 60), (4_000, 250, 500)):
        keys, memory = vsa.random(pairs, dimension, seed=0), vsa.ItemMemory.random(range(items), dimension, seed=1)
        read = vsa.unbind(vsa.record(keys, memory.vectors[:pairs]), keys)
        found = memory.clean_up(read).indices[:, 0] == np.arange(pairs)
        expected = vsa.expected_accuracy(dimension, pairs, items)
        assert 0.5 < expected < 0.97
        assert found.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / pairs))


def test_ends_of_the_scale() -> None:
    assert vsa.expected_accuracy(10_000, 1, 1_000) == pytest.approx(1, abs=1e-9)
    assert vsa.expected_accuracy(100, 10**7, 10) == pytest.approx(0.1, abs=2e-3)  # a guess
    assert vsa.expected_accuracy(100, 500, 1) == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="items must be 1 or more, got 0"):
        vsa.expected_accuracy(10, 1, 0)
    with pytest.raises(ValueError, match="pairs must be 1 or more, got -1"):
        vsa.expected_similarity(-1)
