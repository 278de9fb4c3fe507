import numpy as np
import pytest
import torch

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("half_linear")
HALVES = (torch.float16, torch.bfloat16)


def in_order(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The definition: 32 lanes of float32 sums by fused multiply-adds, which float64 rounds as well, then a tree."""
    padding = (0, -x.shape[1] % 32)
    a = torch.nn.functional.pad(x, padding).double()[:, None]
    b = torch.nn.functional.pad(w.float(), padding).double()[None]
    lanes = torch.zeros(len(x), len(w), 32)
    for c in range(0, a.shape[-1], 32):
        lanes = (a[..., c : c + 32] * b[..., c : c + 32] + lanes.double()).float()
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = low + high
    return lanes[..., 0]


@pytest.mark.parametrize("k", [1, 31, 32, 100, 576])
@pytest.mark.parametrize("dtype", HALVES, ids=helpers.dtype_id)
def test_products_are_the_sums_of_the_definition(dtype: torch.dtype, k: int) -> None:
    x, w = helpers.randn(11, k).bfloat16().float(), helpers.randn(70, k, seed=1, dtype=dtype)
    for tokens in (x[:1], x):
        y = ops.half_linear(tokens, w)
        # Products of 8 and 11 bits are exact in float64, whose sums are then rounded twice, hardly ever otherwise.
        assert (y != in_order(tokens, w)).float().mean() < 1e-3
        assert helpers.relative_l2(y, reference.half_linear(tokens, w)) < 1e-6
    helpers.assert_same_bits(ops.half_linear(x[3:4], w), ops.half_linear(x, w)[3:4])


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_activations_are_widened_and_results_rounded_once(dtype: torch.dtype) -> None:
    x, w, bias = helpers.randn(2, 3, 65, dtype=dtype), helpers.randn(9, 65, dtype=torch.bfloat16), helpers.randn(9)
    y = ops.half_linear(x, w, bias.half())
    assert (y.dtype, y.shape) == (dtype, (2, 3, 9))
    helpers.assert_same_bits(y, (ops.half_linear(x.float(), w) + bias.half().float()).to(dtype))


def test_every_thread_count_gives_the_same_bits() -> None:
    x, w = helpers.randn(3, 1024), helpers.randn(300, 1024, dtype=torch.float16)
    with helpers.threads(1):
        alone = ops.half_linear(x, w)
    with helpers.threads(3):
        helpers.assert_same_bits(ops.half_linear(x, w), alone)


def test_views_and_nothing() -> None:
    x, w = helpers.randn(4, 128), helpers.randn(6, 128, dtype=torch.float16)
    part = ops.half_linear(x[::2, 32:96], w[1::2, 32:96])
    helpers.assert_same_bits(part, ops.half_linear(x[::2, 32:96].clone(), w[1::2, 32:96].clone()))
    helpers.assert_same_bits(
        ops.half_linear(x[:, ::2], w[:, ::2]), ops.half_linear(x[:, ::2].clone(), w[:, ::2].clone())
    )
    assert ops.half_linear(x[:0], w).shape == (0, 6)
    assert ops.half_linear(x, w[:0]).shape == (4, 0)
    assert bool((ops.half_linear(x[:, :0], w[:, :0]) == 0).all())
    assert torch.ops.bittorch.half_linear(x.to("meta"), w.to("meta")).shape == (4, 6)


def test_values_that_are_not_finite() -> None:
    x, w = helpers.randn(2, 40), helpers.randn(3, 40, dtype=torch.float16)
    x[0, 39], w[1, 3] = np.inf, np.nan
    y, expected = ops.half_linear(x, w), torch.nn.functional.linear(x, w.float())
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


def test_bad_input() -> None:
    x, w = helpers.randn(4, 128), helpers.randn(6, 128, dtype=torch.float16)
    with pytest.raises(TypeError, match="weight must be float16 or bfloat16"):
        ops.half_linear(x, w.float())
    with pytest.raises(ValueError, match=r"weight must be \(out_features, 96\)"):
        ops.half_linear(x[:, :96], w)
    with pytest.raises(ValueError, match="a scalar"):
        ops.half_linear(x[0, 0], w)
    with pytest.raises(ValueError, match=r"bias must be \(6,\)"):
        ops.half_linear(x, w, torch.zeros(5))
    with pytest.raises(TypeError, match="x"):
        ops.half_linear(x.int(), w)
    for given in (
        (x.clone().requires_grad_(), w),
        (x, w.clone().requires_grad_()),
        (x, w, torch.zeros(6, requires_grad=True)),
    ):
        with pytest.raises(NotImplementedError, match="no gradient"):
            ops.half_linear(*given)
    x.requires_grad_()
    with torch.no_grad():
        ops.half_linear(x, w)
