"""Block types that stand for floats, against gguf-py on random bytes."""

import gguf
import numpy as np
import pytest

from bittorch.models.io.gguf_blocks import DECODERS
from bittorch.models.io.gguf_types import Q2_0_FORK, TYPES

KINDS = {kind.name: (number, kind) for number, kind in TYPES.items()}


def test_the_type_table_is_that_of_gguf_py() -> None:
    weights = {kind: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name not in ("Q8_1", "Q8_K")}
    for kind, sizes in weights.items():
        assert (TYPES[kind].name, (TYPES[kind].weights, TYPES[kind].bytes)) == (kind.name, sizes)
    assert set(KINDS) - {kind.name for kind in weights} == {"I2_S", "Q2_0", "STQ1_0", "PQ2_0", "PTQ1_0"}


@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"Q2_0", "Q2_0_128", "PQ2_0"}))
def test_random_blocks(name: str) -> None:
    number, kind = KINDS[name]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (500, kind.bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number))
        found = DECODERS[name](blocks)
    whole = np.isfinite(expected).all(axis=1)  # some of the random scales are NaN
    assert whole.sum() > 300
    assert found.dtype == np.float32
    assert np.array_equal(found[whole], expected[whole])


@pytest.mark.parametrize("kind", [TYPES[42], Q2_0_FORK], ids=["64", "128"])
def test_q2_0(kind) -> None:
    """By the definition: -1, 0, 1, 2 times the scale, first weight lowest."""
    block = np.zeros((1, kind.bytes), np.uint8)
    block[0, :3] = *np.float16([0.5]).view(np.uint8), 0b11_10_01_00
    found = DECODERS[kind.name](block)[0]
    assert found[:4].tolist() == [-0.5, 0.0, 0.5, 1.0]
    assert (found[4:] == -0.5).all()
    assert len(found) == kind.weights
