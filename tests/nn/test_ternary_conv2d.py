import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bittorch
from bittorch import TernaryConv2d, TernaryConv2dInference, TernaryQuantConfig, ops
from tests import helpers

CONFIGS = {
    "channel": TernaryQuantConfig(),
    "tensor": TernaryQuantConfig(per_channel=False),
    "group": TernaryQuantConfig(granularity="group", group_size=12),
    "int8": TernaryQuantConfig(method="max", activation_bits=8),
    "24 bits": TernaryQuantConfig(activation_bits=24),
}
# Arguments of nn.Conv2d beside 4 -> 6 channels; the kernel's size times the channels of a group is a multiple of 12.
SHAPES = {
    "plain": {"kernel_size": 3},
    "same": {"kernel_size": 3, "padding": "same"},
    "same of an even kernel": {"kernel_size": (2, 6), "padding": "same", "dilation": (3, 1)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "steps": {"kernel_size": (3, 4), "stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)},
    "groups": {"kernel_size": (2, 3), "groups": 2, "padding": 1},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "stride": 2},
    "circular": {"kernel_size": (3, 4), "padding": "same", "padding_mode": "circular"},
    "no bias": {"kernel_size": 3, "bias": False},
}
X = helpers.randn(2, 4, 9, 11)


def _layer(shape: str = "plain", config: str = "channel", **arguments: object) -> TernaryConv2d:
    torch.manual_seed(2)
    return TernaryConv2d(4, 6, **SHAPES[shape], config=CONFIGS[config], **arguments)


def _plain(layer: TernaryConv2d, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    """nn.Conv2d with the quantised weight."""
    plain = bittorch.export_conv2d_to_inference(copy.deepcopy(_unquantised(layer)))
    assert type(plain) is nn.Conv2d
    plain.weight = nn.Parameter(layer.dequantized_weight())
    return plain.to(dtype)


def _unquantised(layer: TernaryConv2d) -> TernaryConv2d:
    twin = copy.deepcopy(layer)
    twin.quantize = False
    return twin


def test_layer_is_a_conv2d_with_its_signature() -> None:
    ours, theirs = (list(inspect.signature(cls).parameters) for cls in (TernaryConv2d, nn.Conv2d))
    assert issubclass(TernaryConv2d, nn.Conv2d)
    assert ours[:9] == theirs[:9]
    assert set(theirs) <= set(ours)
    torch.manual_seed(3)
    layer = TernaryConv2d(4, 6, 3, quantize=False)
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 6, 3)
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), conv.state_dict().values(), strict=True))
    assert list(layer.state_dict()) == list(conv.state_dict())


@helpers.each("shape", SHAPES)
@helpers.each("config", ["channel", "tensor", "group"])
def test_forward_is_conv2d_of_the_quantised_weight(shape: str, config: str) -> None:
    layer = _layer(shape, config)
    y = layer(X)
    helpers.assert_near(y, _plain(layer)(X.double()), 1e-6)
    assert torch.equal(layer(X[0]), y[0])


@helpers.each("shape", SHAPES)
@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_train_eval_and_export_give_the_same_bits(shape: str, config: str, dtype: torch.dtype) -> None:
    layer, x = _layer(shape, config, dtype=dtype), X.to(dtype)
    packed = bittorch.export_conv2d_to_inference(layer)
    trained = layer(x)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), trained)
        assert torch.equal(packed(x), trained)
        assert torch.equal(packed(x[1]), trained[1])
    assert trained.dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_24_bits_are_near_the_quantised_weight(shape: str) -> None:
    layer = _layer(shape, "24 bits")
    helpers.assert_near(layer(X), _plain(layer)(X.double()), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_conv2d(shape: str) -> None:
    layer, x = _layer(shape), X.clone().requires_grad_()
    y = layer(x)
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)
    plain, wide = _plain(layer), X.double().requires_grad_()
    plain(wide).backward(g.double())
    helpers.assert_near(x.grad, wide.grad)
    helpers.assert_near(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("config", CONFIGS)
def test_backend_python_agrees(config: str) -> None:
    helpers.assert_near(_layer("steps", config, backend="python")(X), _layer("steps", config)(X), 1e-6)


def test_quantize_false_is_conv2d() -> None:
    layer = _unquantised(_layer())
    assert torch.equal(layer(X), functional.conv2d(X, layer.weight, layer.bias))
    packed = bittorch.export_conv2d_to_inference(layer)
    assert type(packed) is nn.Conv2d
    assert torch.equal(packed(X), layer(X))


@pytest.mark.parametrize("bias", [True, False])
def test_from_conv2d_shares_parameters(bias: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, 2, "valid", bias=bias).eval()
    layer = TernaryConv2d.from_conv2d(conv, CONFIGS["int8"])
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    assert (layer.stride, layer.padding, layer.config) == (conv.stride, "valid", CONFIGS["int8"])


@pytest.mark.parametrize("config", CONFIGS)
def test_copies_and_pickles_give_the_same_bits(config: str) -> None:
    layer = _layer("same", config)
    for module in (layer, bittorch.export_conv2d_to_inference(layer)):
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(X), layer(X))


@pytest.mark.parametrize("config", CONFIGS)
def test_meta_layer_is_filled_by_load_state_dict(config: str) -> None:
    source = bittorch.export_conv2d_to_inference(_layer("steps", config))
    groups = {"tensor": 0, "group": 4}.get(config, 1)
    assert source.scale_groups == groups
    layer = TernaryConv2dInference(
        4, 6, **SHAPES["steps"], scale_groups=groups, activation_bits=source.activation_bits, device="meta"
    )
    assert layer(X.to("meta")).shape == source(X).shape
    layer.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(layer(X), source(X))
    assert layer.extra_repr() == source.extra_repr()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    layer.load_state_dict(torch.load(buffer, weights_only=True))


def test_layer_on_meta_gives_shapes() -> None:
    y = _layer("same of an even kernel", device="meta")(X.to("meta"))
    assert y.shape == _layer("same of an even kernel")(X).shape


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casts_leave_codes_and_scale_alone(cast: str) -> None:
    layer = bittorch.export_conv2d_to_inference(_layer())
    codes, scale = layer.weight_packed.clone(), layer.scale.clone()
    getattr(layer, cast)()
    assert torch.equal(layer.weight_packed, codes)
    helpers.assert_same_bits(layer.scale, scale)
    assert layer.bias.dtype == {"half": torch.float16, "double": torch.float64}.get(cast, torch.bfloat16)


def test_load_refuses_the_reserved_code() -> None:
    layer = bittorch.export_conv2d_to_inference(_layer())
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight_packed"][3, 2] |= 0b00110000
    with pytest.raises(RuntimeError, match="weight_packed holds the reserved code 11 at row 3, column 10"):
        layer.load_state_dict(state)


@helpers.each("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@helpers.each("config", CONFIGS)
@helpers.each("shape", ["same", "reflect"])
def test_autocast_casts_x_alone(dtype: torch.dtype, config: str, shape: str) -> None:
    layer = _layer(shape, config)
    packed = bittorch.export_conv2d_to_inference(layer)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(X)
        assert torch.equal(packed(X), y)
    assert y.dtype == dtype
    assert torch.equal(packed(X.to(dtype)), y)
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", ["same of an even kernel", "circular"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_traced_layer_equals_eager(config: str, shape: str, training: bool) -> None:
    torch._dynamo.reset()
    layer = _layer(shape, config).train(training)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    if not training:
        packed = bittorch.export_conv2d_to_inference(layer)
        with torch.no_grad():
            assert torch.equal(compiled(X), layer(X))
            assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(X), layer(X))
        return
    expected = layer(X)
    (wanted,) = torch.autograd.grad(expected.square().sum(), layer.weight)
    y = compiled(X)
    (grad,) = torch.autograd.grad(y.square().sum(), layer.weight)
    assert torch.equal(y, expected)
    helpers.assert_near(grad, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["channel", "int8"])
def test_compiled_layer_equals_eager(config: str) -> None:
    torch._dynamo.reset()
    packed = bittorch.export_conv2d_to_inference(_layer("same", config))
    with torch.no_grad():
        assert torch.equal(torch.compile(packed, fullgraph=True)(X), packed(X))


@pytest.mark.parametrize("config", CONFIGS)
def test_empty_batch_gives_an_empty_result_and_zero_gradients(config: str) -> None:
    layer, x = _layer("same", config), X[:0].clone().requires_grad_()
    y = layer(x)
    assert y.shape == (0, 6, 9, 11)
    assert bittorch.export_conv2d_to_inference(layer)(x).shape == y.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any()


def test_int8_scale_is_one_a_sample() -> None:
    """A sample's outputs do not change with the others, and an outlier in a sample changes all of its outputs' grid."""
    layer = _layer("plain", "int8")
    x = X.clone()
    x[0, 0, 0, 0] = 1e4
    y, clean = layer(x), layer(X)
    assert torch.equal(y[1], clean[1])
    assert not torch.equal(y[0, :, -1, -1], clean[0, :, -1, -1])


@pytest.mark.parametrize("config", CONFIGS)
def test_training_reduces_the_loss(config: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_layer("same", config), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9 * 11, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = helpers.randn(64, 4, 9, 11)
    labels = x[:, :3].mean((2, 3)).argmax(1)
    losses = []
    for _ in range(40):
        loss = functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# Arguments


@pytest.mark.parametrize("kind", [TernaryConv2d, TernaryConv2dInference])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "in_channels must be divisible by groups"),
        ({"padding": -1}, r"padding must not be negative, got \(-1, -1\)"),
        ({"padding": "other"}, "Invalid padding string"),
        ({"padding": "same", "stride": 2}, "padding='same' is not supported for strided"),
        ({"padding_mode": "other"}, "padding_mode must be one of"),
        ({"activation_bits": 4}, "activation_bits must be one of None, 8, 16, 24, got 4"),
    ],
)
def test_bad_configurations_are_refused(kind: type[nn.Module], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(4, 6, 3, **arguments)


def test_groups_of_a_scale_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got group_size=8 and in_features=36"):
        TernaryConv2d(4, 6, 3, config=TernaryQuantConfig(granularity="group", group_size=8))
    with pytest.raises(ValueError, match="scale_groups=5 do not cut 36 weights"):
        TernaryConv2dInference(4, 6, 3, scale_groups=5)


def test_unknown_backend_and_missing_cuda_raise() -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        TernaryConv2d(4, 6, 3, backend="nosuch")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="backend='cuda'"):
            TernaryConv2d(4, 6, 3, backend="cuda")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 9, 9), r"\(2, 3, 9, 9\)"),
        (torch.zeros(4, 9), r"\(4, 9\)"),
        (torch.zeros(1, 1, 4, 9, 9), r"\(1, 1, 4, 9, 9\)"),
        (torch.zeros(1, 4, 2, 9), "the padded input is smaller than the kernel"),
    ],
)
def test_input_of_another_shape_is_refused(x: Tensor, message: str) -> None:
    layer = _layer()
    for module in (layer, bittorch.export_conv2d_to_inference(layer)):
        with pytest.raises(ValueError, match=message):
            module(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float64])
def test_input_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    layer = _layer()
    with pytest.raises(RuntimeError, match=f"got {dtype} and torch.float32"):
        layer(X.to(dtype))
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16"):
        bittorch.export_conv2d_to_inference(layer)(X.to(dtype))


@helpers.each("config", CONFIGS)
@helpers.each("shape", ["steps", "groups", "reflect", "same of an even kernel"])
def test_quant_lambda_blends_in_training_alone(shape: str, config: str) -> None:
    layer, bits = _layer(shape, config), CONFIGS[config].activation_bits
    ternary, dense = layer(X), _unquantised(layer).double()
    layer.quant_lambda = 0.0
    helpers.assert_near(layer(X), dense(X.double()))
    layer.quant_lambda = 0.25
    rounded = X.double()
    if bits:
        rounded = (helpers.act_codes(X.flatten(1), bits) * bittorch.ops.act_quantize(X.flatten(1), bits)[1]).view_as(X)
    dense.weight.data.lerp_(layer.dequantized_weight().double(), 0.25)
    x = X.clone().requires_grad_()
    y = layer(x)
    wide = X.double().lerp(rounded.double(), 0.25).requires_grad_()
    helpers.assert_near(y, dense(wide))
    y.square().sum().backward()
    dense(wide).square().sum().backward()
    helpers.assert_near(x.grad, wide.grad)
    helpers.assert_near(layer.weight.grad, dense.weight.grad)
    assert layer(X[0]).shape == y[0].shape
    assert torch.equal(layer.eval()(X), ternary)


def test_weight_with_nan_is_refused_by_export() -> None:
    layer = _layer()
    with torch.no_grad():
        layer.weight[2, 1, 0, 0] = float("nan")
    assert layer(X)[:, 2].isnan().all()
    with pytest.raises(ValueError, match=r"cannot export the layer: w must be finite.*row 2"):
        bittorch.export_conv2d_to_inference(layer)
    with pytest.raises(ValueError, match="w must be finite"):
        layer.dequantized_weight()


def test_dequantized_weight_is_codes_times_scale() -> None:
    layer = _layer()
    codes, scale = ops.ternary_quantize(layer.weight.detach().flatten(1), *layer.config.op_args())
    expected = ops.ternary_unpack(codes, scale, 36, torch.float32).view(6, 4, 3, 3)
    assert torch.equal(layer.dequantized_weight(), expected)
    w_tern, conv_scale = layer.get_quantized_weight()
    assert torch.equal(w_tern, ops.ternary_unpack(codes, None, 36, torch.int8).view(6, 4, 3, 3).float())
    assert torch.equal(conv_scale, scale)


def test_repr_says_how_it_quantises() -> None:
    text = repr(_layer("same", "int8"))
    assert "kernel_size=(3, 3)" in text
    assert "padding=same" in text
    assert "method=max" in text
    assert "activation_bits=8" in text


NEW_PADDING = {
    "dilated backbone": ({"padding": 1}, {"dilation": (2, 2), "padding": (2, 2)}),
    "same": ({"padding": "same"}, {"dilation": (2, 1)}),
    "no padding": ({"padding": 1}, {"padding": 0}),
    "reflect": ({"padding": 1, "padding_mode": "reflect"}, {"padding": (2, 1)}),
    "other mode": ({"padding": 1}, {"padding_mode": "circular"}),
}


@pytest.mark.parametrize(("before", "after"), NEW_PADDING.values(), ids=list(NEW_PADDING))
def test_padding_follows_what_is_set_on_a_made_layer(before: dict[str, object], after: dict[str, object]) -> None:
    torch.manual_seed(2)
    layer = TernaryConv2d(4, 6, 3, **before).eval()
    packed = bittorch.export_for_inference(layer)
    for name, value in after.items():
        setattr(layer, name, value)
        setattr(packed, name, value)
    weight = layer.dequantized_weight()
    plain = nn.Conv2d(4, 6, 3, **{**before, **after})
    plain.weight, plain.bias = nn.Parameter(weight), nn.Parameter(layer.bias.detach().clone())
    expected = plain.double()(X.double())
    helpers.assert_near(layer(X), expected.detach())
    assert torch.equal(packed(X), layer(X))
    assert torch.equal(bittorch.export_for_inference(layer)(X), layer(X))
    layer.quantize = False
    layer.weight.data = weight
    helpers.assert_near(layer(X), expected.detach())


def test_padding_that_is_refused_leaves_the_layer_as_it_was() -> None:
    layer = _layer("plain")
    expected = layer(X)
    with pytest.raises(ValueError, match=r"padding must not be negative, got \(-1, 0\)"):
        layer.padding = (-1, 0)
    assert layer.padding == (0, 0)
    assert torch.equal(layer(X), expected)
