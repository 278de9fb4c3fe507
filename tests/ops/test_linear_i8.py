import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

VARIANTS = [*helpers.variants("linear_i8"), "matmul"]
BITS = (8, 16, 24)


def expected(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    step = ops.act_quantize(x, bits)[1]
    return helpers.product_of_codes(helpers.act_codes(x, bits), step, w, scale, bias, x.dtype)


def problem(n: int, k: int) -> tuple[Tensor, Tensor]:
    w = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=helpers.seeded(2))
    return w, torch.rand(n, generator=helpers.seeded(3)) + 0.25


@pytest.mark.parametrize("k", [*helpers.EDGE_SIZES, 1100])
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_every_variant_gives_the_integers_of_the_contract(dtype: torch.dtype, k: int) -> None:
    w, scale = problem(70, k)
    x, bias = helpers.randn(6, k, dtype=dtype), helpers.randn(70, dtype=dtype)
    for bits in BITS:
        for m in (0, 1, 6):
            y = expected(x[:m], w, scale, bias, bits)
            helpers.assert_same_bits(reference.linear_i8(x[:m], w, scale, bias, activation_bits=bits), y)
            for variant in VARIANTS:
                of = ops.linear_i8(x[:m], w, scale, bias, activation_bits=bits, variant=variant)
                helpers.assert_same_bits(of, y)


@pytest.mark.parametrize("value", [127, -128])
def test_sums_at_their_limits(value: int) -> None:
    x, w = torch.full((2, 65536), -3.0), torch.full((5, 65536), value, dtype=torch.int8)
    y = expected(x, w, torch.ones(5), None, 8)
    for variant in VARIANTS:
        helpers.assert_same_bits(ops.linear_i8(x, w, torch.ones(5), activation_bits=8, variant=variant), y)


def test_every_thread_count_gives_the_same_bits() -> None:
    (w, scale), x = problem(300, 1024), helpers.randn(2, 3, 1024)
    with helpers.threads(1):
        alone = ops.linear_i8(x, w, scale)
    with helpers.threads(3):
        helpers.assert_same_bits(ops.linear_i8(x, w, scale), alone)


def test_a_token_that_is_not_finite_is_nan() -> None:
    (w, scale), x = problem(5, 64), helpers.randn(3, 64)
    x[1, 7] = torch.inf
    for variant in VARIANTS:
        y = ops.linear_i8(x, w, scale, variant=variant)
        assert y.isnan().all(1).tolist() == [False, True, False]


def test_views_and_meta() -> None:
    (w, scale), x = problem(6, 128), helpers.randn(4, 128)
    part = ops.linear_i8(x[::2, 32:96], w[1::2, 32:96], scale[1::2])
    helpers.assert_same_bits(part, ops.linear_i8(x[::2, 32:96].clone(), w[1::2, 32:96].clone(), scale[1::2].clone()))
    assert ops.linear_i8(x.to("meta"), w.to("meta"), scale.to("meta")).shape == (4, 6)


def test_bad_input() -> None:
    (w, scale), x = problem(6, 128), helpers.randn(4, 128)
    with pytest.raises(TypeError, match="weight must be int8"):
        ops.linear_i8(x, w.short(), scale)
    with pytest.raises(ValueError, match=r"weight must be \(out_features, 96\)"):
        ops.linear_i8(x[:, :96], w, scale)
    with pytest.raises(ValueError, match=r"scale must be \(6,\), one a row, got \[1\]"):
        ops.linear_i8(x, w, scale[:1])
    with pytest.raises(ValueError, match="at most 65536"):
        ops.linear_i8(torch.zeros(1, 65537), torch.zeros(1, 65537, dtype=torch.int8), scale[:1])
    with pytest.raises(ValueError, match="activation_bits"):
        ops.linear_i8(x, w, scale, activation_bits=7)
    with pytest.raises(ValueError, match="no kernel 'none'"):
        ops.linear_i8(x, w, scale, variant="none")
    bias = torch.zeros(len(scale), requires_grad=True)
    for given in ((x.clone().requires_grad_(), w, scale), (x, w, scale.clone().requires_grad_()), (x, w, scale, bias)):
        with pytest.raises(NotImplementedError, match="no gradient"):
            ops.linear_i8(*given)
