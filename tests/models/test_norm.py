import pytest
import torch

from bittorch.models.norm import NormFromOne, RMSNorm
from tests import helpers


def norm(size: int, dtype: torch.dtype, eps: float = 1e-5) -> RMSNorm:
    made = RMSNorm(size, eps)
    made.fill(helpers.randn(size, seed=1, dtype=dtype))
    return made


@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("size", [1, 3, 64, 6912])
@helpers.each("magnitude", [1e-3, 1.0, 100.0])
def test_values(size: int, dtype: torch.dtype, magnitude: float) -> None:
    x = (helpers.randn(5, size) * magnitude).to(dtype)
    layer = norm(size, dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight.double()
    helpers.assert_near(layer(x), expected, {torch.float32: 1e-6}.get(dtype, 2 * helpers.TOLERANCE[dtype]))


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_rows_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    x, layer = helpers.randn(33, 2560, dtype=dtype), norm(2560, dtype)
    together = layer(x)
    for row in range(33):
        helpers.assert_same_bits(layer(x[row : row + 1])[0], together[row])


def test_zeros_and_nan() -> None:
    layer = norm(8, torch.float32)
    assert not bool(layer(torch.zeros(2, 8)).any())
    assert bool(layer(torch.full((1, 8), torch.nan)).isnan().all())


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_a_weight_that_is_stored_less_one(dtype: torch.dtype) -> None:
    """Small weights keep their digits, also under halves; what was stored is given back as it was."""
    layer, weight = NormFromOne(64, 1e-5), (helpers.randn(64, seed=1) * 1e-3).to(dtype)
    layer.fill(weight)
    x = helpers.randn(5, 64, dtype=dtype)
    found, wide = layer(x), x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + weight.double())
    assert found.dtype == dtype
    helpers.assert_near(found, expected, {torch.float32: 1e-6}.get(dtype, helpers.TOLERANCE[dtype]))
    helpers.assert_same_bits(layer.stored, weight)
