import pytest
import torch

from bittorch import ops
from bittorch.models.io.blocks import KINDS
from bittorch.ops import reference
from tests import helpers
from tests.ops.test_block_unpack import random_blocks

_kernel = helpers.each_kernel("block_linear")


def in_order(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The definition: 32 lanes of float32 sums in rising order of columns, then a tree."""
    lanes = torch.zeros(len(x), len(w), 32)
    for c in range(0, x.shape[1], 32):
        lanes = lanes + x[:, None, c : c + 32] * w[None, :, c : c + 32]
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = low + high
    return lanes[..., 0]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_the_sums_of_the_definition(kind: str) -> None:
    blocks = random_blocks(kind, 70, 3)
    k = 3 * KINDS[kind].weights
    w = reference.block_unpack(blocks, kind, k, torch.float32)
    x = helpers.randn(66, k)
    for tokens in (x[:1], x[:2], x):
        y = ops.block_linear(tokens, blocks, kind)
        helpers.assert_same_bits(y, in_order(tokens, w))
        exact = reference.block_linear(tokens, blocks, kind)
        assert helpers.relative_l2(y, exact) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_and_rounded_once(dtype: torch.dtype) -> None:
    blocks, x = random_blocks("Q4_K", 5, 2), helpers.randn(2, 3, 512, dtype=dtype) / 8192
    y = ops.block_linear(x, blocks, "Q4_K")
    assert (y.dtype, y.shape) == (dtype, (2, 3, 5))
    helpers.assert_same_bits(y, ops.block_linear(x.float(), blocks, "Q4_K").to(dtype))


def test_every_thread_count_gives_the_same_bits() -> None:
    blocks, x = random_blocks("Q6_K", 300, 4), helpers.randn(3, 1024)
    with helpers.threads(1):
        alone = ops.block_linear(x, blocks, "Q6_K")
    with helpers.threads(3):
        helpers.assert_same_bits(ops.block_linear(x, blocks, "Q6_K"), alone)


def test_views_and_nothing() -> None:
    blocks, x = random_blocks("Q8_0", 6, 4), helpers.randn(4, 128)
    part = ops.block_linear(x[::2, 32:96], blocks[1::2, 34:102], "Q8_0")
    helpers.assert_same_bits(part, ops.block_linear(x[::2, 32:96].clone(), blocks[1::2, 34:102].clone(), "Q8_0"))
    assert ops.block_linear(x[:0], blocks, "Q8_0").shape == (0, 6)
    assert ops.block_linear(x, blocks[:0], "Q8_0").shape == (4, 0)
    assert bool((ops.block_linear(x[:, :0], blocks[:, :0], "Q8_0") == 0).all())
    assert torch.ops.bittorch.block_linear(x.to("meta"), blocks.to("meta"), "Q8_0").shape == (4, 6)


def test_bad_input() -> None:
    blocks, x = random_blocks("Q8_0", 6, 4), helpers.randn(4, 128)
    with pytest.raises(ValueError, match=r"\(rows, 102\) for 96 columns of Q8_0, got \[6, 136\]"):
        ops.block_linear(x[:, :96], blocks, "Q8_0")
    with pytest.raises(ValueError, match="a scalar"):
        ops.block_linear(x[0, 0], blocks, "Q8_0")
    with pytest.raises(TypeError, match="x"):
        ops.block_linear(x.int(), blocks, "Q8_0")
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.block_linear(x.requires_grad_(), blocks, "Q8_0")
    with torch.no_grad():
        ops.block_linear(x, blocks, "Q8_0")
