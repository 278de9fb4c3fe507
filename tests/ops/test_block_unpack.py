"""Quantised blocks, against gguf-py on random bytes."""

import gguf
import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io.blocks import KINDS
from bittorch.models.io.gguf_types import TYPES
from bittorch.models.io.gguf_writer import TYPE_IDS
from bittorch.ops import reference
from bittorch.ops.block_types import WEIGHTS
from tests import helpers

_kernel = helpers.each_kernel("block_unpack")
PY = sorted(set(KINDS) - {"Q2_0", "Q2_0_128"})  # the other two gguf-py does not know


def random_blocks(kind: str, rows: int, blocks: int, seed: int = 0) -> Tensor:
    """Random bytes whose halves are finite."""
    _, size, scales = KINDS[kind]
    data = torch.randint(0, 256, (rows, blocks, size), dtype=torch.uint8, generator=helpers.seeded(seed))
    for at in scales:
        data[:, :, at + 1] &= 0b10111011  # an exponent that is not all ones
    if kind == "MXFP4":
        data[:, :, 0] = data[:, :, 0] % 40 + 100
    return data.flatten(1)


@pytest.mark.parametrize("kind", PY)
def test_blocks_are_those_of_gguf_py(kind: str) -> None:
    weights, size, _ = KINDS[kind]
    assert (weights, size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPE_IDS[kind])]
    for blocks in (1, 3, 16):
        data = random_blocks(kind, 40, blocks)
        expected = torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(TYPE_IDS[kind])))
        for run in (ops.block_unpack, reference.block_unpack):
            helpers.assert_same_bits(run(data, kind, blocks * weights, torch.float32), expected)
        for dtype in (torch.float16, torch.bfloat16):
            helpers.assert_same_bits(ops.block_unpack(data, kind, blocks * weights, dtype), expected.to(dtype))


@pytest.mark.parametrize("kind", ["Q2_0", "Q2_0_128"])
def test_q2_0(kind: str) -> None:
    """By the definition: -1, 0, 1, 2 times the scale, first weight lowest."""
    weights, size, _ = KINDS[kind]
    block = torch.zeros((1, size), dtype=torch.uint8)
    block[0, :3] = torch.tensor([0, 0x38, 0b11_10_01_00])  # 0.5
    for run in (ops.block_unpack, reference.block_unpack):
        found = run(block, kind, weights, torch.float32)[0]
        assert found[:4].tolist() == [-0.5, 0.0, 0.5, 1.0]
        assert bool((found[4:] == -0.5).all())
    data = random_blocks(kind, 7, 5)
    expected = reference.block_unpack(data, kind, 5 * weights, torch.float32)
    helpers.assert_same_bits(ops.block_unpack(data, kind, 5 * weights, torch.float32), expected)


@pytest.mark.parametrize("power", [0, 1, 2, 127, 128, 255])
def test_powers_of_mxfp4(power: int) -> None:
    block = torch.full((1, 17), 0x21, dtype=torch.uint8)  # 0.5 and 1, which are stored doubled
    block[0, 0] = power
    found = ops.block_unpack(block, "MXFP4", 32, torch.float32)[0, [0, 16]]
    assert found.tolist() == torch.ldexp(torch.tensor([1.0, 2.0]).double(), torch.tensor(power - 128)).float().tolist()


def test_rows_may_be_views_and_may_be_none() -> None:
    data = random_blocks("Q6_K", 6, 3)
    whole = ops.block_unpack(data, "Q6_K", 768, torch.float32)
    helpers.assert_same_bits(ops.block_unpack(data[1::2, 210:630], "Q6_K", 512, torch.float32), whole[1::2, 256:])
    assert ops.block_unpack(data[:0], "Q6_K", 768, torch.float32).shape == (0, 768)
    assert ops.block_unpack(data[:, :0], "Q6_K", 0, torch.float32).shape == (6, 0)
    assert torch.ops.bittorch.block_unpack(data.to("meta"), "Q6_K", 768, torch.float16).shape == (6, 768)


def test_the_tables_agree() -> None:
    assert {kind: own.weights for kind, own in KINDS.items()} == WEIGHTS
    for kind in set(KINDS) - {"Q2_0_128"}:
        assert (TYPES[TYPE_IDS[kind]].weights, TYPES[TYPE_IDS[kind]].bytes) == KINDS[kind][:2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 34, dtype=torch.uint8), "Q9", 32, torch.float32), ValueError, "Q8_0, Q4_0.*got 'Q9'"),
        ((torch.zeros(2, 34, dtype=torch.uint8), "Q8_0", 33, torch.float32), ValueError, "33 columns are not cut"),
        ((torch.zeros(2, 34, dtype=torch.uint8), "Q8_0", -32, torch.float32), ValueError, "-32 columns"),
        ((torch.zeros(2, 33, dtype=torch.uint8), "Q8_0", 32, torch.float32), ValueError, r"\(rows, 34\).*\[2, 33\]"),
        ((torch.zeros(34, dtype=torch.uint8), "Q8_0", 32, torch.float32), ValueError, r"\(rows, 34\)"),
        ((torch.zeros(2, 34), "Q8_0", 32, torch.float32), TypeError, "uint8, got float32"),
        ((torch.zeros(2, 34, dtype=torch.uint8), "Q8_0", 32, torch.int8), TypeError, "dtype"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.block_unpack(*arguments)


def test_the_type_table_is_that_of_gguf_py() -> None:
    weights = {kind: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name not in ("Q8_1", "Q8_K")}
    for kind, sizes in weights.items():
        assert (TYPES[kind].name, (TYPES[kind].weights, TYPES[kind].bytes)) == (kind.name, sizes)
    assert set(TYPE_IDS) - {kind.name for kind in weights} == {"I2_S", "Q2_0", "STQ1_0", "PQ2_0", "PTQ1_0"}
