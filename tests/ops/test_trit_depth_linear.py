import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from bittorch.quant import pack_trit_planes
from tests import helpers

VARIANTS = helpers.variants("trit_depth_linear")
BITS = (8, 16, 24)


class _Problem:
    def __init__(self, n: int, k: int, depth: int, group: int = 0) -> None:
        planes = torch.randint(-1, 2, (depth, n, k), dtype=torch.int8, generator=helpers.seeded(2))
        self.depth, self.packed = depth, helpers.pack(planes.flatten(0, 1))
        self.integers = sum(3**i * plane.long() for i, plane in enumerate(planes))
        shape = (n, k // group) if group else (n,)
        self.scale = torch.rand(shape, generator=helpers.seeded(3)) + 0.25

    def expected(self, x: Tensor, bias: Tensor, bits: int) -> Tensor:
        step = ops.act_quantize(x, bits)[1]
        return helpers.product_of_codes(helpers.act_codes(x, bits), step, self.integers, self.scale, bias, x.dtype)


@pytest.mark.parametrize(("k", "group"), [(1, 0), (65, 0), (256, 4), (320, 64), (576, 0), (1024, 512)])
@pytest.mark.parametrize("depth", range(1, 6))
def test_every_variant_gives_the_integers_of_the_contract(depth: int, k: int, group: int) -> None:
    problem, dtype = _Problem(70, k, depth, group), helpers.FLOATS[depth % 3]
    x, bias = helpers.randn(6, k, dtype=dtype), helpers.randn(70, dtype=dtype)
    for bits in BITS:
        y, rest = problem.expected(x, bias, bits), {"depth": depth, "activation_bits": bits}
        weights = problem.packed, problem.scale, bias
        helpers.assert_same_bits(reference.trit_depth_linear(x, *weights, **rest), y)
        for variant in VARIANTS:
            helpers.assert_same_bits(ops.trit_depth_linear(x, *weights, variant=variant, **rest), y)
            helpers.assert_same_bits(ops.trit_depth_linear(x[:1], *weights, variant=variant, **rest), y[:1])


@pytest.mark.parametrize("depth", [2, 4])
def test_it_is_the_sum_of_the_planes(depth: int) -> None:
    packed, scale = pack_trit_planes(helpers.randn(40, 256), depth, "group", 64)
    x, norm = helpers.randn(3, 256), helpers.randn(256).abs()
    rows = ops.ternary_linear_w2a8(x, packed, scale, activation_bits=16, norm_weight=norm, norm_eps=1e-3)
    planes = rows.double().unflatten(-1, (depth, -1)).sum(-2)
    y = ops.trit_depth_linear(x, packed, scale[:40], depth=depth, norm_weight=norm, norm_eps=1e-3)
    assert helpers.relative_l2(y, planes) < 1e-6


def test_every_thread_count_gives_the_same_bits() -> None:
    problem, x = _Problem(300, 512, 4), helpers.randn(2, 3, 512)
    with helpers.threads(1):
        alone = ops.trit_depth_linear(x, problem.packed, problem.scale, depth=4)
    with helpers.threads(3):
        helpers.assert_same_bits(ops.trit_depth_linear(x, problem.packed, problem.scale, depth=4), alone)


def test_nothing_and_meta() -> None:
    problem, x = _Problem(6, 128, 2), helpers.randn(4, 128)
    weights = problem.packed, problem.scale
    assert ops.trit_depth_linear(x[:0], *weights, depth=2).shape == (0, 6)
    assert ops.trit_depth_linear(x.to("meta"), *(w.to("meta") for w in weights), depth=2).shape == (4, 6)
    assert bool((ops.trit_depth_linear(x[:, :0], problem.packed[:, :0], problem.scale, depth=2) == 0).all())


def test_bad_input() -> None:
    problem, x = _Problem(6, 128, 2), helpers.randn(4, 128)
    packed, scale = problem.packed, problem.scale
    with pytest.raises(ValueError, match="depth must be from 1 to 5, got 6"):
        ops.trit_depth_linear(x, packed, scale, depth=6)
    with pytest.raises(ValueError, match="multiple of depth=5 rows, got 12"):
        ops.trit_depth_linear(x, packed, scale, depth=5)
    with pytest.raises(ValueError, match="scale must be"):
        ops.trit_depth_linear(x, packed, scale.repeat(2), depth=2)
    with pytest.raises(ValueError, match="w_packed must be"):
        ops.trit_depth_linear(x[:, :64], packed, scale, depth=2)
    with pytest.raises(TypeError, match="x"):
        ops.trit_depth_linear(x.to(torch.int8), packed, scale, depth=2)
    for name in ("x", "scale", "bias", "norm_weight"):
        given = {"x": x, "scale": scale, "bias": torch.zeros(6), "norm_weight": torch.ones(128)}
        given[name] = given[name].clone().requires_grad_()
        with pytest.raises(NotImplementedError, match="no gradient"):
            ops.trit_depth_linear(given.pop("x"), packed, given.pop("scale"), depth=2, **given)
