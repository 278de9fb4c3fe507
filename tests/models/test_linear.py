import pytest
import torch
from torch import nn

from bittorch.models.io import PackedWeight
from bittorch.models.linear import (
    Concatenated,
    HalfLinear,
    dense_linear,
    linear_of,
    normed,
    packed_linear,
    split_packed,
)
from bittorch.models.norm import RMSNorm
from bittorch.nn import TernaryLinearInference
from bittorch.quant import pack_trit_planes
from tests import helpers
from tests.models import tiny

CPU = torch.device("cpu")
ROWS, COLUMNS = (24, 8, 12), 64


def planes(n: int, depth: int, seed: int, group: int | None = None) -> PackedWeight:
    granularity = ("channel", 128) if group is None else ("group", group)
    packed, scale = pack_trit_planes(helpers.randn(n, COLUMNS, seed=seed), depth, *granularity)
    return PackedWeight(packed, scale, COLUMNS, depth)


KINDS = {
    "tensor": lambda n, seed: tiny.random_packed(n, COLUMNS, seed),
    "channel": lambda n, seed: tiny.random_packed(n, COLUMNS, seed, "channel"),
    "groups": lambda n, seed: tiny.random_packed(n, COLUMNS, seed, "4"),
    "depth 3": lambda n, seed: planes(n, 3, seed),
    "depth 2 groups": lambda n, seed: planes(n, 2, seed, 16),
}


@helpers.each("kind", KINDS)
@helpers.each("bits", [None, 8, 16])
@helpers.each("bias", [False, True])
@helpers.each("dtype", [torch.float32, torch.bfloat16], ids=helpers.dtype_id)
def test_fused_layers_give_the_bits_of_single_ones(kind: str, bits: int | None, bias: bool, dtype: torch.dtype) -> None:
    parts = [KINDS[kind](n, seed) for seed, n in enumerate(ROWS)]
    biases = helpers.randn(sum(ROWS), seed=9, dtype=dtype) if bias else None
    fused = packed_linear(parts, biases, activation_bits=bits, device=CPU)
    assert isinstance(fused, TernaryLinearInference)
    x = helpers.randn(5, COLUMNS, seed=11, dtype=dtype)
    split = [None] * 3 if biases is None else biases.split(ROWS)
    single = [
        packed_linear([part], own, activation_bits=bits, device=CPU)(x) for part, own in zip(parts, split, strict=True)
    ]
    assert torch.equal(fused(x), torch.cat(single, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_split_undoes_fusing(kind: str) -> None:
    parts = [KINDS[kind](n, seed) for seed, n in enumerate(ROWS)]
    fused = packed_linear(parts, None, activation_bits=None, device=CPU)
    again = split_packed(PackedWeight(fused.weight_packed, fused.scale, COLUMNS, fused.depth), ROWS)
    for part, own in zip(parts, again, strict=True):
        assert part.depth == own.depth
        assert torch.equal(part.weight_packed, own.weight_packed)
        assert torch.equal(part.scale, own.scale)


def test_rows_in_one_piece_are_taken_as_they_are() -> None:
    """Others are copied: in another order, with a gap, and where each has memory of its own, however near."""
    apart = [KINDS["tensor"](n, seed) for seed, n in enumerate(ROWS)]
    expected = packed_linear(apart, None, activation_bits=None, device=CPU).weight_packed
    room = torch.cat([part.weight_packed for part in apart])
    pieces = room.split(ROWS)
    parts = [PackedWeight(own, part.scale, COLUMNS) for own, part in zip(pieces, apart, strict=True)]
    fused = packed_linear(parts, None, activation_bits=None, device=CPU).weight_packed
    assert fused.data_ptr() == room.data_ptr()
    assert torch.equal(fused, expected)
    for order in ([0, 2, 1], [0, 2], [1, 0]):
        found = packed_linear([parts[i] for i in order], None, activation_bits=None, device=CPU).weight_packed
        assert torch.equal(found, torch.cat([pieces[i] for i in order]))
        assert found.untyped_storage().data_ptr() != room.untyped_storage().data_ptr()
    bytes_apart = [torch.from_numpy(own.numpy()) for own in pieces]  # a storage each, as views of a mapped file have
    parts = [PackedWeight(own, part.scale, COLUMNS) for own, part in zip(bytes_apart, apart, strict=True)]
    found = packed_linear(parts, None, activation_bits=None, device=CPU).weight_packed
    assert found.data_ptr() != room.data_ptr()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [None, 8, 16])
def test_norm_of_a_packed_layer_is_in_its_quantiser(bits: int | None) -> None:
    norm, x = RMSNorm(COLUMNS, 1e-5), helpers.randn(5, COLUMNS) * 3
    norm.fill(helpers.randn(COLUMNS, seed=4))
    layer = packed_linear([planes(24, 1, 0)], None, activation_bits=bits, device=CPU)
    y = normed(layer, norm, x, True)
    assert torch.equal(y, layer(x, norm))
    helpers.assert_near(y, layer(norm(x)).double(), 1e-2)
    dense = linear_of(helpers.randn(7, COLUMNS))
    assert torch.equal(normed(dense, norm, x, True), dense(norm(x)))
    assert torch.equal(normed(layer, nn.Identity(), x, True), layer(x))
    assert torch.equal(normed(layer, norm, x, False), layer(norm(x)))


def test_parts_that_cannot_be_one_layer_stand_side_by_side() -> None:
    parts = [planes(24, 2, 0), planes(8, 3, 1), planes(12, 2, 2, 16)]
    layer = packed_linear(parts, helpers.randn(44), activation_bits=None, device=CPU)
    assert isinstance(layer, Concatenated)
    x = helpers.randn(5, COLUMNS, seed=11)
    whole = torch.cat([packed_linear([part], None, activation_bits=None, device=CPU)(x) for part in parts], -1)
    helpers.assert_near(layer(x), whole + helpers.randn(44))


def test_a_single_part_is_not_copied() -> None:
    part = tiny.random_packed(24, COLUMNS, 0)
    layer = packed_linear([part], None, activation_bits=None, device=CPU)
    assert layer.weight_packed.data_ptr() == part.weight_packed.data_ptr()
    weight = helpers.randn(3, 4)
    assert dense_linear([weight], None, device=CPU, dtype=torch.float32).weight.data_ptr() == weight.data_ptr()


def test_dense_layers_side_by_side() -> None:
    weights = [helpers.randn(n, COLUMNS, seed=n) for n in ROWS]
    bias = helpers.randn(sum(ROWS), seed=9)
    layer = dense_linear(weights, bias, device=CPU, dtype=torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    x = helpers.randn(5, COLUMNS).bfloat16()
    helpers.assert_near(layer(x), x.double() @ torch.cat(weights).bfloat16().double().T + bias.bfloat16().double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_a_half_head_rounds_no_wider_activations(dtype: torch.dtype, tokens: int) -> None:
    weight, bias, x = helpers.randn(70, 96, dtype=dtype), helpers.randn(70, dtype=dtype), helpers.randn(tokens, 96)
    head = linear_of(weight, bias, kind=HalfLinear)
    exact = x.double() @ weight.double().T + bias.double()
    assert helpers.relative_l2(head(x), exact) < 1e-6
    half = head(x.to(dtype))
    exact = x.to(dtype).double() @ weight.double().T + bias.double()
    assert half.dtype == dtype
    assert helpers.relative_l2(half, exact) < helpers.TOLERANCE[dtype]
    given = x.clone().requires_grad_()
    head(given).sum().backward()  # by torch, which has a gradient
    assert given.grad is not None
    assert helpers.relative_l2(given.grad, weight.double().sum(0).expand_as(x)) < helpers.TOLERANCE[dtype]
    widened = head.float()(x)  # an ordinary layer then
    assert helpers.relative_l2(widened, x.double() @ weight.double().T + bias.double()) < 1e-6
