import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig, ops
from bittorch.nn import ternary_conv2d_infer
from tests import helpers

GRANULARITIES = {
    "tensor": TernaryQuantConfig(per_channel=False),
    "channel": TernaryQuantConfig(),
    "group": TernaryQuantConfig(granularity="group", group_size=8),
}
GROUPS = {"tensor": 0, "channel": 1, "group": 4}


def _packed(granularity: str = "channel", in_features: int = 32, **arguments: object) -> TernaryLinearInference:
    torch.manual_seed(3)
    layer = TernaryLinear(in_features, 5, config=GRANULARITIES[granularity], **arguments)
    return bittorch.export_linear_to_inference(layer)


def _empty(granularity: str = "channel", **arguments: object) -> TernaryLinearInference:
    return TernaryLinearInference(32, 5, groups=GROUPS[granularity], **arguments)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_layer_holds_buffers_only(granularity: str, bias: bool) -> None:
    for layer in (_packed(granularity, bias=bias), _empty(granularity, bias=bias)):
        assert not list(layer.parameters())
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        assert list(layer.state_dict()) == ["weight_packed", "scale", "bias"][: 2 + bias]
        assert (layer.weight_packed.dtype, layer.weight_packed.shape) == (torch.uint8, (5, 8))
        expected = {"tensor": (1,), "channel": (5,), "group": (5, 4)}[granularity]
        assert (layer.scale.dtype, layer.scale.shape) == (torch.float32, expected)
        assert layer.groups == GROUPS[granularity]


@pytest.mark.parametrize("groups", [0, 1, 2], ids=["tensor", "channel", "group"])
def test_groups_of_a_single_output_fit_its_scale(groups: int) -> None:
    layer = TernaryLinearInference(8, 1, groups=groups)
    again = TernaryLinearInference(8, 1, groups=layer.groups)
    assert again.scale.shape == layer.scale.shape


@helpers.each("granularity", GRANULARITIES)
@helpers.each("activation_bits", [None, 8, 16, 24])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_forward_is_the_op(granularity: str, activation_bits: int | None, dtype: torch.dtype) -> None:
    layer = _packed(granularity)
    layer.activation_bits = activation_bits
    x = helpers.randn(2, 3, 32, dtype=dtype)
    op = (
        partial(ops.ternary_linear_w2a8, activation_bits=activation_bits)
        if activation_bits
        else ops.ternary_linear_packed
    )
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, op(x, layer.weight_packed, layer.scale, layer.bias))
    assert not y.requires_grad


def _norm(eps: float | None = 1e-6, affine: bool = True) -> torch.nn.RMSNorm:
    norm = torch.nn.RMSNorm(32, eps, elementwise_affine=affine).requires_grad_(False)
    if affine:
        norm.weight.copy_(helpers.randn(32, seed=1))
    return norm


@helpers.each("granularity", GRANULARITIES)
@helpers.each("bits", [8, 16, 24])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_norm_is_part_of_the_quantiser(granularity: str, bits: int, dtype: torch.dtype) -> None:
    layer, x, norm = _packed(granularity), helpers.randn(2, 3, 32, dtype=dtype) * 5, _norm()
    layer.activation_bits = bits
    weights = layer.weight_packed, layer.scale, layer.bias
    fused = {"norm_weight": norm.weight, "norm_eps": 1e-6}
    y = layer(x, norm)
    assert torch.equal(y, ops.ternary_linear_w2a8(x, *weights, activation_bits=bits, **fused))
    helpers.assert_near(y, _exact_of_norm(layer, norm, x), 2e-2)


def _exact_of_norm(layer: TernaryLinearInference, norm: torch.nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    wide = wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
    return wide @ layer.dequantized_weight().double().t() + layer.bias.double()


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_norm_without_a_quantiser_or_a_weight_comes_first(dtype: torch.dtype) -> None:
    layer, x, norm = _packed(), helpers.randn(3, 32, dtype=dtype), _norm().to(dtype)
    assert torch.equal(layer(x, norm), layer(norm(x)))
    layer.activation_bits = 8
    plain = _norm(affine=False)
    assert torch.equal(layer(x, plain), layer(plain(x)))


def test_norm_without_an_eps_has_that_of_the_dtype() -> None:
    layer, x = _packed(), helpers.randn(3, 32) * 1e-4
    layer.activation_bits = 8
    eps = torch.finfo(torch.float32).eps
    assert torch.equal(layer(x, _norm(None)), layer(x, _norm(eps)))
    assert not torch.equal(layer(x, _norm(None)), layer(x, _norm(1e-5)))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to float16", "to float64", "float"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_casts_leave_codes_and_scale_alone(cast: str, granularity: str) -> None:
    layer = _packed(granularity)
    before = copy.deepcopy(layer)
    if cast.startswith("to "):
        layer.to(getattr(torch, cast[3:]))
    else:
        getattr(layer, cast)()
    assert torch.equal(layer.weight_packed, before.weight_packed)
    helpers.assert_same_bits(layer.scale, before.scale)
    wanted = {"half": torch.float16, "double": torch.float64, "float": torch.float32}.get(cast) or getattr(
        torch, cast.removeprefix("to ")
    )
    assert layer.bias.dtype == wanted
    assert layer.groups == before.groups


def test_cast_of_a_model_around_the_layer_keeps_the_scale() -> None:
    model = torch.nn.Sequential(_packed(), torch.nn.LayerNorm(5))
    scale = model[0].scale.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model[0].scale, scale)
    assert model[0].scale.dtype == torch.float32
    assert model(helpers.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_cast_on_meta_keeps_the_dtype_of_the_scale() -> None:
    layer = _empty(device="meta").half()
    assert (layer.scale.dtype, layer.bias.dtype) == (torch.float32, torch.float16)
    assert layer.scale.device.type == "meta"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_meta_layer_is_filled_by_load_state_dict(granularity: str, bias: bool) -> None:
    source, x = _packed(granularity, bias=bias), helpers.randn(3, 32)
    for assign in (False, True):
        layer = _empty(granularity, bias=bias, device="meta")
        assert layer.weight_packed.device.type == "meta"
        if not assign:
            layer.to_empty(device="cpu")
        layer.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(layer(x), source(x))


def test_state_dict_survives_weights_only_load() -> None:
    source, buffer = _packed(), io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    layer = _empty()
    layer.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(layer(torch.ones(32)), source(torch.ones(32)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies_and_pickles_give_the_same_bits(granularity: str) -> None:
    layer, x = _packed(granularity), helpers.randn(3, 32)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.weight_packed.data_ptr() != layer.weight_packed.data_ptr()


@pytest.mark.parametrize(("key", "message"), [("scale", "Missing key.*scale"), ("bias", "Missing key.*bias")])
def test_missing_keys_raise(key: str, message: str) -> None:
    state = _packed().state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=message):
        _empty().load_state_dict(state)


def test_unexpected_key_raises() -> None:
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        _empty(bias=False).load_state_dict(_packed().state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_load_refuses_the_reserved_code_with_row_and_column(assign: bool) -> None:
    state = _packed().state_dict()
    state["weight_packed"] = state["weight_packed"].clone()
    state["weight_packed"][3, 2] |= 0b00110000
    layer = torch.nn.Sequential(_empty())
    before = layer[0].weight_packed.clone()
    with pytest.raises(RuntimeError, match=r"0\.weight_packed holds the reserved code 11 at row 3, column 10"):
        layer.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()}, assign=assign)
    assert torch.equal(layer[0].weight_packed, before)


def test_load_refuses_wrong_padding() -> None:
    state = {"weight_packed": torch.full((5, 8), 0b01000000, dtype=torch.uint8), "scale": torch.ones(5)}
    TernaryLinearInference(32, 5, bias=False).load_state_dict(state)
    with pytest.raises(RuntimeError, match="in_features=31, got 01 at row 0, column 31"):
        TernaryLinearInference(31, 5, bias=False).load_state_dict(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_refuses_non_finite_scale(value: float) -> None:
    state = _packed().state_dict()
    state["scale"] = torch.full((5,), value)
    with pytest.raises(RuntimeError, match="scale must be finite, got NaN or Inf"):
        _empty().load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("weight_packed", torch.zeros(5, 8, dtype=torch.int8), "weight_packed must be uint8, got torch.int8"),
        ("weight_packed", torch.zeros(5, 7, dtype=torch.uint8), "size mismatch for weight_packed"),
        ("weight_packed", torch.zeros(8, 5, dtype=torch.uint8), "size mismatch for weight_packed"),
        ("scale", torch.ones(5).half(), "scale must be float32, got torch.float16"),
        ("scale", torch.ones(1), "size mismatch for scale"),
        ("scale", torch.ones(5, 4), "size mismatch for scale"),
        ("bias", torch.ones(4), "size mismatch for bias"),
    ],
    ids=str,
)
def test_load_refuses_other_dtypes_and_shapes(key: str, tensor: torch.Tensor, message: str) -> None:
    state = _packed().state_dict()
    state[key] = tensor
    with pytest.raises(RuntimeError, match=message):
        _empty().load_state_dict(state)


@pytest.mark.parametrize("width", [29, 31, 33, 36, 0])
def test_input_of_another_width_raises_with_both(width: int) -> None:
    layer = _packed(in_features=30)
    layer(torch.zeros(2, 30))
    with pytest.raises(ValueError, match=f"30.*{width}"):
        layer(torch.zeros(2, width))


def test_scalar_input_raises() -> None:
    with pytest.raises(ValueError, match="32"):
        _packed()(torch.tensor(1.0))


@pytest.mark.parametrize("groups", [-1, 3, 16, 5])
def test_groups_that_do_not_cut_the_row_raise(groups: int) -> None:
    with pytest.raises(ValueError, match=f"groups={groups} do not cut in_features=32"):
        TernaryLinearInference(32, 5, groups=groups)


@pytest.mark.parametrize("bits", [0, 4, 32, 8.0])  # FIELD R15
def test_other_activation_bits_raise(bits: int) -> None:
    with pytest.raises(ValueError, match=f"activation_bits must be one of None, 8, 16, 24, got {bits}"):
        TernaryLinearInference(32, 5, activation_bits=bits)


def test_repr_says_what_it_holds() -> None:
    text = repr(_packed("group", activation_bits=8))
    for part in ("in_features=32", "out_features=5", "bias=True", "groups=4", "activation_bits=8"):
        assert part in text


def test_gradient_reaches_the_input_for_adapters() -> None:
    layer, x = _packed(), helpers.randn(3, 32).requires_grad_()
    layer(x).sum().backward()
    weight = ops.ternary_unpack(layer.weight_packed, layer.scale, 32, torch.float32)
    helpers.assert_near(x.grad, weight.double().sum(0).expand(3, 32))


@pytest.mark.parametrize("activation_bits", [None, 8, 16, 24])
def test_traced_layer_equals_eager(activation_bits: int | None) -> None:
    torch._dynamo.reset()
    layer, x = _packed("group", activation_bits=activation_bits), helpers.randn(3, 32)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def _packed_in_bfloat16(kind: type) -> nn.Sequential:
    layer = kind(4, 6, 1) if kind is not TernaryLinear else kind(4, 6)
    return bittorch.export_for_inference(nn.Sequential(layer.bfloat16()))


@pytest.mark.parametrize("kind", [bittorch.TernaryConv2d, TernaryLinear])
def test_weight_tells_dtype_device_and_shape(kind: type) -> None:  # FIELD N9
    (layer,) = _packed_in_bfloat16(kind)
    shape = (6, 4, 1, 1) if kind is not TernaryLinear else (6, 4)
    for _ in range(2):
        assert isinstance(layer.weight, torch.Tensor)
        assert (layer.weight.dtype, layer.weight.device.type) == (torch.bfloat16, "cpu")
        assert layer.weight.shape == shape
        layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    assert layer.half().weight.dtype == torch.float16
    assert layer.to("meta").weight.device.type == "meta"
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        layer.nosuch  # noqa: B018


@helpers.each(
    "read",
    [
        lambda w: w * 2,
        lambda w: nn.functional.linear(torch.ones(2, 4, dtype=w.dtype), w.flatten(1)),
        lambda w: w.data,
        lambda w: w.float(),
        lambda w: w[0],
        lambda w: w.tolist(),
        lambda w: w.numpy(),
        lambda w: w.data_ptr(),
        lambda w: w.detach().sum().item(),
        lambda w: w.copy_(torch.ones_like(w)),
        nn.init.zeros_,
        nn.Parameter,
        list,
    ],
)
@helpers.each("kind", [bittorch.TernaryConv2d, TernaryLinear])
def test_reading_the_values_of_the_weight_names_the_layer(kind: type, read: object) -> None:  # FIELD N9
    (layer,) = _packed_in_bfloat16(kind)
    with pytest.raises(RuntimeError, match=r"^the values of 0\.weight are read, but .* leave it dense: skip="):
        read(layer.weight)


@pytest.mark.parametrize("kind", [bittorch.TernaryConv2d, TernaryLinear])
def test_a_weight_that_is_set_is_not_taken(kind: type) -> None:  # FIELD N9
    (layer,) = _packed_in_bfloat16(kind)
    keys = list(layer.state_dict())
    with pytest.warns(UserWarning, match=r"^0 is packed and keeps its codes: a weight that is set") as caught:
        layer.weight = nn.Parameter(torch.ones(6, 4))
    assert caught[0].filename == (__file__ if kind is TernaryLinear else ternary_conv2d_infer.__file__)
    assert list(layer.state_dict()) == keys


def test_traced_models_may_read_the_dtype_of_the_weight() -> None:  # FIELD N9
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wo = TernaryLinear(8, 4, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wo(x.to(self.wo.weight.dtype) if isinstance(self.wo.weight, torch.Tensor) else x)

    packed, x = bittorch.export_for_inference(Casts()), helpers.randn(3, 8)
    torch._dynamo.reset()
    y = torch.compile(packed, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, packed(x))
    assert torch.equal(torch.export.export(packed, (x,)).module()(x), y)
