"""`TernaryLinearInference` with trit planes."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from bittorch import TernaryLinearInference, TernaryQuantConfig, quant
from bittorch.ops import reference
from tests import helpers

CONFIGS = {
    "tensor": TernaryQuantConfig(granularity="tensor"),
    "channel": TernaryQuantConfig(),
    "group": TernaryQuantConfig(granularity="group", group_size=8),
}
BITS = (None, 8, 16, 24)


def _linear(in_features: int = 32, out_features: int = 5, bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(in_features, out_features, bias=bias)


def _layer(
    depth: int = 3, granularity: str = "channel", bits: int | None = None, **sizes: int
) -> TernaryLinearInference:
    config = {**CONFIGS[granularity].to_dict(), "activation_bits": bits}
    return TernaryLinearInference.from_linear(_linear(**sizes), depth, TernaryQuantConfig.from_dict(config))


def _exact(layer: TernaryLinearInference, x: torch.Tensor) -> torch.Tensor:
    """The layer in float64, from the planes by their definition."""
    codes = torch.stack(_unpacked(layer))
    rows = layer.scale.view(layer.depth, layer.out_features, -1)
    weight = sum(helpers.dense(c, s) for c, s in zip(codes, rows, strict=True))
    if layer.activation_bits:
        q = helpers.act_codes(x, layer.activation_bits)
        largest = {8: 127, 16: 32639, 24: 8355711}[layer.activation_bits]
        x = q * (x.double().abs().amax(-1, keepdim=True) / largest)
    y = x.double() @ weight.T
    return y if layer.bias is None else y + layer.bias.double()


def _unpacked(layer: TernaryLinearInference) -> list[torch.Tensor]:
    raw = layer.weight_packed[:, :, None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8) & 3
    codes = raw.flatten(1)[:, : layer.in_features]
    return list(((codes == 1).to(torch.int8) - (codes == 2).to(torch.int8)).chunk(layer.depth))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_norm_goes_into_every_plane(bits: int | None, autocast: bool) -> None:
    layer, x, norm = _layer(3, bits=bits), helpers.randn(2, 3, 32) * 5, nn.RMSNorm(32, 1e-6).requires_grad_(False)
    norm.weight.copy_(helpers.randn(32, seed=1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, first = layer(x, norm), layer(norm(x))
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
    helpers.assert_near(y, first.double(), 2e-2)
    if bits is None:
        assert torch.equal(y, first)


@helpers.each("depth", range(2, 7))
@helpers.each("granularity", CONFIGS)
@helpers.each("bits", BITS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_output_against_float64(depth: int, granularity: str, bits: int | None, dtype: torch.dtype) -> None:
    layer, x = _layer(depth, granularity, bits), helpers.randn(2, 3, 32, dtype=dtype)
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (2, 3, 5))
    expected = _exact(layer, x)
    # One cast, and nothing else of the size of the dtype: what float64 loses when it is cast, and float32 sums.
    cast = helpers.relative_l2(expected.to(dtype), expected)
    helpers.assert_near(y, expected, 1.02 * cast + 1e-6)


@pytest.mark.parametrize("granularity", CONFIGS)
def test_weight_is_that_of_the_planes(granularity: str) -> None:
    linear, layer = _linear(), _layer(3, granularity)
    config = CONFIGS[granularity]
    planes = quant.trit_planes(linear.weight, 3, config.granularity, config.group_size)
    helpers.assert_near(layer.dequantized_weight(), quant.from_trit_planes(*planes, torch.float64), 1e-7)
    assert all(torch.equal(a, b) for a, b in zip(_unpacked(layer), planes[0], strict=True))
    helpers.assert_near(layer.dequantized_weight(torch.float16), planes_dense := layer.dequantized_weight(), 1e-3)
    w_tern, scale = layer.get_quantized_weight()
    assert set(w_tern.unique().tolist()) <= {-1.0, 0.0, 1.0}
    summed = helpers.dense(w_tern, scale).unflatten(0, (layer.depth, -1)).sum(0)
    helpers.assert_near(layer.dequantized_weight(), summed, 1e-7)
    assert planes_dense.dtype == torch.float32


@pytest.mark.parametrize("depth", range(1, 7))
def test_deep_planes_come_near_the_dense_layer(depth: int) -> None:
    linear, x = _linear(256, 64), helpers.randn(16, 256)
    layer = TernaryLinearInference.from_linear(linear, depth)
    assert helpers.relative_l2(layer(x), linear(x)) < 1.2 / 2.9 ** (depth - 1)


@pytest.mark.parametrize("variant", helpers.variants("ternary_linear_packed", torch.float32))
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_every_floating_kernel_gives_the_same_bits(variant: str, dtype: torch.dtype) -> None:
    for granularity, columns in (("channel", 30), ("group", 128)):
        layer, x = _layer(3, granularity, in_features=columns), helpers.randn(9, columns, dtype=dtype)
        with helpers.forced("ternary_linear_packed", variant):
            y = layer(x)
        with helpers.forced("ternary_linear_packed", "scalar"):
            helpers.assert_same_bits(y, layer(x))


@pytest.mark.parametrize("variant", helpers.variants("ternary_linear_w2a8"))
@pytest.mark.parametrize("bits", BITS[1:])
def test_every_integer_kernel_gives_the_same_bits(variant: str, bits: int) -> None:
    layer, x = _layer(4, bits=bits, in_features=30), helpers.randn(9, 30)
    with helpers.forced("ternary_linear_w2a8", variant):
        y = layer(x)
    with helpers.forced("ternary_linear_w2a8", "scalar"):
        helpers.assert_same_bits(y, layer(x))


@helpers.each("bits", BITS)
@helpers.each("in_features", [1, 3, 29, 33, 64])
def test_token_does_not_depend_on_its_batch(bits: int | None, in_features: int) -> None:
    layer, x = _layer(3, bits=bits, in_features=in_features), helpers.randn(7, in_features)
    y = layer(x)
    helpers.assert_near(y, _exact(layer, x), 1e-6)
    for token, row in zip(x, y, strict=True):
        helpers.assert_same_bits(layer(token), row)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32), (32,)])
@pytest.mark.parametrize("bits", BITS)
def test_empty_batches_and_single_tokens(shape: tuple[int, ...], bits: int | None) -> None:
    assert _layer(2, bits=bits)(torch.zeros(shape)).shape == (*shape[:-1], 5)


@pytest.mark.parametrize(("in_features", "out_features"), [(0, 5), (32, 0), (0, 0)])
def test_sizes_of_zero(in_features: int, out_features: int) -> None:
    layer = TernaryLinearInference(in_features, out_features, depth=2)
    assert torch.equal(layer(torch.ones(3, in_features)), torch.zeros(3, out_features))


def test_planes_add_in_the_documented_order_and_the_bias_comes_last() -> None:
    layer = TernaryLinearInference(4, 1, depth=3)
    layer.weight_packed.fill_(1)  # one weight of +1 in each plane
    layer.scale.copy_(torch.tensor([1.0, 1.0, 2.0**24]))
    layer.bias.fill_(-(2.0**24))
    # (1 + 1) + 2^24 is exact in float32, (2^24 + 1) + 1 and a bias that comes first are not the same sum.
    assert layer(torch.tensor([1.0, 0, 0, 0])).item() == 2
    layer.scale.copy_(torch.tensor([2.0**24, 1.0, 1.0]))
    assert layer(torch.tensor([1.0, 0, 0, 0])).item() == 0


def test_half_activations_lose_nothing_between_planes() -> None:
    layer = TernaryLinearInference(4, 1, bias=False, depth=2)
    layer.weight_packed.copy_(torch.tensor([[0b01], [0b10]]))
    layer.scale.copy_(torch.tensor([60000.0, 60001.0]))
    for dtype in (torch.float16, torch.bfloat16):
        assert layer(torch.tensor([2, 0, 0, 0], dtype=dtype)).item() == -2  # either plane alone is beyond float16


@pytest.mark.parametrize("bits", [None, 8, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=helpers.dtype_id)
def test_autocast_casts_the_activations_alone(bits: int | None, dtype: torch.dtype) -> None:
    layer, x = _layer(3, bits=bits), helpers.randn(4, 32, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    helpers.assert_same_bits(y, layer(x.bfloat16()))


def test_other_dtypes_raise_as_at_depth_1() -> None:
    for x in (torch.ones(2, 32, dtype=torch.float64), torch.ones(2, 32, dtype=torch.int64)):
        messages = []
        for depth in (1, 3):
            with pytest.raises(TypeError) as error:
                _layer(depth)(x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError):
        _layer(3)(torch.ones(2, 32, dtype=torch.float64))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_gradient_of_the_input(bits: int | None, dtype: torch.dtype) -> None:
    layer, x = _layer(3, bits=bits), helpers.randn(3, 32, dtype=dtype).requires_grad_()
    grad = helpers.randn(3, 5, seed=8, dtype=dtype)
    layer(x).backward(grad)
    assert x.grad.dtype == dtype
    helpers.assert_near(x.grad, grad.double() @ layer.dequantized_weight(torch.float64))


@pytest.mark.parametrize("granularity", CONFIGS)
def test_buffers_and_what_the_layer_says(granularity: str) -> None:
    layer = _layer(4, granularity)
    assert not list(layer.parameters())
    assert list(layer.state_dict()) == ["weight_packed", "scale", "bias"]
    assert layer.weight_packed.shape == (20, 8)
    assert layer.scale.shape == ((20, 4) if granularity == "group" else (20,))
    assert layer.groups == (4 if granularity == "group" else 1)
    assert "depth=4" in repr(layer)
    assert "depth" not in repr(_layer(1))
    empty = TernaryLinearInference(32, 5, groups=layer.groups, depth=4)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}


def test_single_row_and_single_plane_keep_their_groups() -> None:
    assert TernaryLinearInference(8, 1, depth=2).groups == 1
    assert TernaryLinearInference(8, 1, depth=2, groups=2).groups == 2


@pytest.mark.parametrize("granularity", CONFIGS)
@pytest.mark.parametrize("bits", [None, 8])
def test_copies_pickles_and_state_dicts_give_the_same_bits(granularity: str, bits: int | None) -> None:
    layer, x, buffer = _layer(3, granularity, bits), helpers.randn(3, 32), io.BytesIO()
    loaded = TernaryLinearInference(32, 5, groups=layer.groups, depth=3, activation_bits=bits)
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert twin.depth == 3
        helpers.assert_same_bits(twin(x), layer(x))


def test_layer_pickled_before_there_was_a_depth() -> None:
    layer, x = _layer(1), helpers.randn(3, 32)
    del layer.__dict__["depth"]
    helpers.assert_same_bits(layer(x), _layer(1)(x))


@pytest.mark.parametrize("granularity", CONFIGS)
def test_casts_leave_codes_and_scale_alone(granularity: str) -> None:
    layer, x = _layer(3, granularity), helpers.randn(3, 32, dtype=torch.float16)
    half = copy.deepcopy(layer).half()
    helpers.assert_same_bits(half.scale, layer.scale)
    assert half.bias.dtype == torch.float16
    layer.bias.copy_(half.bias)
    helpers.assert_same_bits(half(x), layer(x))


def test_meta_layer_knows_its_shapes_and_is_filled() -> None:
    layer = TernaryLinearInference(32, 5, depth=3, device="meta")
    assert layer(torch.ones(2, 32, device="meta")).shape == (2, 5)
    source, x = _layer(3), helpers.randn(3, 32)
    layer.load_state_dict(source.state_dict(), assign=True)
    helpers.assert_same_bits(layer(x), source(x))


@pytest.mark.parametrize("bits", [None, 8, 24])
def test_traced_layer_equals_eager(bits: int | None) -> None:
    torch._dynamo.reset()
    layer = _layer(3, "group", bits)
    traced = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x in (helpers.randn(3, 32), helpers.randn(3, 32, dtype=torch.float16)):
        helpers.assert_same_bits(traced(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        helpers.assert_same_bits(traced(helpers.randn(3, 32)), layer(helpers.randn(3, 32)))


def test_damaged_planes_are_refused_with_their_row() -> None:
    state = _layer(3).state_dict()
    state["weight_packed"] = state["weight_packed"].clone()
    state["weight_packed"][12, 2] |= 0b00110000
    with pytest.raises(RuntimeError, match="reserved code 11 at row 12, column 10"):
        TernaryLinearInference(32, 5, depth=3).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for weight_packed"):
        TernaryLinearInference(32, 5, depth=2).load_state_dict(_layer(3).state_dict())


@pytest.mark.parametrize(("depth", "error"), [(0, ValueError), (7, ValueError), (True, TypeError), (2.0, TypeError)])
def test_bad_depths_raise_with_both_values(depth: object, error: type[Exception]) -> None:
    for make in (lambda: TernaryLinearInference(8, 4, depth=depth), lambda: _layer(depth)):
        with pytest.raises(
            error, match=f"depth must be .* from 1 to 6, got {depth}|depth must be from 1 to 6, got {depth}"
        ):
            make()


def test_one_scale_for_all_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"groups=0 .* depth=2"):
        TernaryLinearInference(8, 4, groups=0, depth=2)


@pytest.mark.parametrize(
    "field", [{"method": "optimal"}, {"scale": "mean"}, {"threshold_factor": 0.3}, {"ste": "clipped"}], ids=str
)
def test_training_options_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))}="):
        TernaryLinearInference.from_linear(_linear(), 3, TernaryQuantConfig(**field))


def test_weights_that_cannot_be_converted_raise() -> None:
    with pytest.raises(ValueError, match="meta device"):
        TernaryLinearInference.from_linear(nn.Linear(8, 4, device="meta"), 3)
    linear = _linear()
    linear.weight.data[3, 2] = torch.nan
    with pytest.raises(ValueError, match="w must be finite, got 1 NaN"):
        TernaryLinearInference.from_linear(linear, 3)
    with pytest.raises(ValueError, match="group_size=8 and in_features=12"):
        TernaryLinearInference.from_linear(nn.Linear(12, 4), 3, CONFIGS["group"])


def test_source_is_not_touched_and_its_mode_kept() -> None:
    linear = _linear().eval()
    before = copy.deepcopy(linear)
    layer = TernaryLinearInference.from_linear(linear, 2)
    assert not layer.training
    layer.bias.zero_()
    assert torch.equal(linear.bias, before.bias)
    assert torch.equal(linear.weight, before.weight)


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("depth", [2, 5])
def test_planes_meet_activations_as_integers(depth: int, bits: int) -> None:
    layer, x, norm = _layer(depth, "group", bits), helpers.randn(3, 32), nn.RMSNorm(32, 1e-6).requires_grad_(False)
    weights = layer.weight_packed, layer.scale[: layer.out_features], layer.bias
    expected = reference.trit_depth_linear(x, *weights, depth=depth, activation_bits=bits)
    helpers.assert_same_bits(layer(x), expected)
    wanted = {"depth": depth, "activation_bits": bits, "norm_weight": norm.weight, "norm_eps": 1e-6}
    helpers.assert_same_bits(layer(x, norm), reference.trit_depth_linear(x, *weights, **wanted))
    # With gradients each plane is a product of its own.
    trained = layer(x.clone().requires_grad_())
    assert trained.requires_grad
    assert 0 < helpers.relative_l2(trained, layer(x)) + 1e-30 < 1e-6


def test_planes_with_scales_of_their_own_are_refused() -> None:
    layer = _layer(3)
    state = layer.state_dict()
    state["scale"] = state["scale"].clone()
    state["scale"][layer.out_features + 1] *= 1 + 1e-4
    with pytest.raises(RuntimeError, match=r"scale of plane 1 must be 3\^1 times that of the lowest plane"):
        _layer(3).load_state_dict(state)
