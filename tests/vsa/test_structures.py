import itertools

import numpy as np
import pytest

from bittorch import vsa
from tests.array.arrays import assert_same

DIMENSION = 2_000


def test_a_record_gives_back_the_value_of_each_key() -> None:
    keys, items = vsa.random(15, DIMENSION, seed=0), vsa.ItemMemory.random(range(40), DIMENSION, seed=1)
    pairs = vsa.record(keys, items.vectors[:15])
    assert_same(pairs, np.sign((keys.to_numpy() * items.vectors[:15].to_numpy()).sum(0, dtype=int)))
    assert items.clean_up(vsa.unbind(pairs, keys)).indices[:, 0].tolist() == list(range(15))
    heavy = vsa.record(keys[:2], items.vectors[:2], weights=[1, 2])  # the heavier one has every trit
    assert_same(vsa.unbind(heavy, keys[1]), items[1])


def test_three_levels_of_records() -> None:
    roles = vsa.ItemMemory.random(["person", "address", "city", "street", "name", "other"], 10_000, seed=2)
    fillers = vsa.ItemMemory.random(["Ada", "Oslo", "Main", "Paris", "Ring", "Bob"], 10_000, seed=3)
    city = vsa.record(roles[["name", "other"]], fillers[["Oslo", "Paris"]])
    address = vsa.record(roles[["city", "street"]], [city, fillers["Main"]])
    person = vsa.record(roles[["address", "name"]], [address, fillers["Ada"]])

    def at(*path: str) -> object:
        return fillers.name_of(vsa.unbind(person, vsa.bind(*(roles[name] for name in path))))

    assert at("name") == "Ada"
    assert at("address", "street") == "Main"
    assert at("address", "city", "name") == "Oslo"
    assert at("address", "city", "other") == "Paris"


def test_sequences_know_their_order() -> None:
    items = vsa.ItemMemory.random("abcdefg", DIMENSION, seed=4)
    text = vsa.sequence(items[list("cabac")])
    assert "".join(str(items.name_of(vsa.permute(text, -i))) for i in range(5)) == "cabac"
    vectors = items[list("abc")].to_numpy()
    bound = vectors[0] * np.roll(vectors[1], 1) * np.roll(vectors[2], 2)
    assert_same(vsa.bind_sequence(items[list("abc")]), bound)
    orders = [vsa.bind_sequence(items[list(order)]) for order in itertools.permutations("abc")]
    likeness = np.array([vsa.cosine_similarity(orders[0], order) for order in orders])
    assert likeness[0] == 1
    assert abs(likeness[1:]).max() < 0.12


def test_ngrams_are_the_bundle_of_all_windows() -> None:
    items = vsa.ItemMemory.random("abcd", 50, seed=5)
    text = items[list("abcadd")]
    windows = [vsa.bind_sequence(text[i : i + 3]) for i in range(4)]
    assert_same(vsa.ngrams(text, 3), vsa.bundle(np.stack(windows)).to_numpy())
    assert_same(vsa.ngrams(text, 1), vsa.bundle(text).to_numpy())
    assert_same(vsa.ngrams(text, 6), vsa.bind_sequence(text).to_numpy())
    for n in (0, 7):
        with pytest.raises(ValueError, match=f"n must be from 1 to the 6 vectors, got {n}"):
            vsa.ngrams(text, n)


def test_bad_records_are_named() -> None:
    v = vsa.random(3, 8, seed=0)
    with pytest.raises(ValueError, match="got 3 keys and 2 values"):
        vsa.record(v, v[:2])
    with pytest.raises(ValueError, match="must have one dimension, got 8 and 7"):
        vsa.record(v, v[:, 1:])
    with pytest.raises(ValueError, match=r"values must be .* got shape \(0, 8\)"):
        vsa.record(v, v[:0])
    with pytest.raises(ValueError, match=r"got nan at index \(2,\)"):
        vsa.record(v, v, [1, 1, np.nan])
