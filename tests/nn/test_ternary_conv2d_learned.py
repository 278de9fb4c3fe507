"""Convolutions whose gradient does not go straight through: learned scales, the clipped estimator."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bittorch
from bittorch import TernaryConv2d, TernaryQuantConfig, export_for_inference
from bittorch.quant import learned
from bittorch.train import TernaryAfter
from tests import helpers

OPTIONS = [{"method": "lsq"}, {"method": "seq"}, {"ste": "clipped"}, {"ste": "clipped", "method": "absmean"}]
GRANULARITIES = {
    "tensor": {"granularity": "tensor"},
    "channel": {},
    "group": {"granularity": "group", "group_size": 12},
}
SHAPES = {
    "plain": {"kernel_size": 3},
    "steps": {"kernel_size": (3, 4), "stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)},
    "groups": {"kernel_size": (2, 3), "groups": 2, "padding": 1},
    "same of an even kernel": {"kernel_size": (2, 6), "padding": "same", "bias": False},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
}
X = helpers.randn(2, 4, 9, 11)


def _layer(shape: str = "plain", dtype: torch.dtype = torch.float32, **config: object) -> TernaryConv2d:
    torch.manual_seed(2)
    layer = TernaryConv2d(4, 6, **SHAPES[shape], config=TernaryQuantConfig(**config), dtype=dtype)
    if layer.weight_scale is not None:
        layer.weight_scale.data *= 1.1
    return layer


def _dense(layer: TernaryConv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution with another weight, in float64."""
    twin = nn.Conv2d(4, 6, **{name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")})
    twin.groups, twin.padding_mode = layer.groups, layer.padding_mode
    twin._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
    return twin._conv_forward(x.double(), weight.double(), None if layer.bias is None else layer.bias.detach().double())


def _rounded(x: Tensor, bits: int | None) -> Tensor:
    """``Q(x)`` in float64, one scale per sample."""
    if bits is None:
        return x.double()
    rows = x.flatten(1)
    return (helpers.act_codes(rows, bits) * bittorch.ops.act_quantize(rows, bits)[1].double()).view_as(x)


@helpers.each("options", OPTIONS, ids=str)
@helpers.each("granularity", GRANULARITIES)
@helpers.each("activation_bits", [None, 8, 24])
@helpers.each("dtype", [torch.float32, torch.bfloat16], ids=helpers.dtype_id)
def test_train_eval_and_export_give_the_same_bits(
    options: dict[str, str], granularity: str, activation_bits: int | None, dtype: torch.dtype
) -> None:
    layer = _layer(dtype=dtype, activation_bits=activation_bits, **options, **GRANULARITIES[granularity])
    x = X.to(dtype)
    trained = layer(x)
    assert torch.equal(layer.eval()(x), trained)
    assert torch.equal(export_for_inference(layer)(x), trained)
    assert torch.equal(layer(x[0]), trained[0])
    helpers.assert_near(trained, _dense(layer, _rounded(x, activation_bits), layer.dequantized_weight()))


@helpers.each("shape", SHAPES)
@helpers.each("options", OPTIONS, ids=str)
@helpers.each("activation_bits", [None, 8, 24])
@helpers.each("backend", ["auto", "python"])
def test_gradients_are_those_of_the_dense_weight(
    shape: str, options: dict[str, str], activation_bits: int | None, backend: str
) -> None:
    layer = _layer(shape, activation_bits=activation_bits, **options)
    layer.backend = backend
    x = X.clone().requires_grad_()
    y = layer(x)
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)

    wide = _rounded(X, activation_bits).requires_grad_()
    weight = layer.dequantized_weight().double().requires_grad_()
    exact = _dense(layer, wide, weight)
    helpers.assert_near(y, exact.detach())
    exact.backward(g.double())
    helpers.assert_near(x.grad, wide.grad)
    if layer.bias is not None:
        helpers.assert_near(layer.bias.grad, g.double().sum((0, 2, 3)))
    master, dense = layer.weight.detach().flatten(1).requires_grad_(), weight.grad.float().flatten(1)
    if layer.weight_scale is None:
        learned.clipped(master, layer.quantize_packed()[1]).backward(dense)
    else:
        step = layer.weight_scale.detach().clone().requires_grad_()
        learned.route(master, step, layer.config.method).backward(dense)
        helpers.assert_near(layer.weight_scale.grad, step.grad.double())
    helpers.assert_near(layer.weight.grad.flatten(1), master.grad.double())


def test_int8_activations_are_saved_as_int8() -> None:
    layer, saved = _layer(method="lsq", activation_bits=8), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(X)
    assert {t.dtype for t in saved if t.numel() >= X.numel()} == {torch.int8}


def test_frozen_weight_passes_gradients_on() -> None:
    layer, x = _layer(method="lsq").requires_grad_(False), X.clone().requires_grad_()
    assert not layer(X).requires_grad
    layer(x).sum().backward()
    wide = X.double().requires_grad_()
    _dense(layer, wide, layer.dequantized_weight()).sum().backward()
    helpers.assert_near(x.grad, wide.grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_ttq_trains_densely_and_does_not_export(shape: str) -> None:
    layer = _layer(shape, method="ttq")
    assert layer.weight_scale.shape == (2, 6)
    layer.weight_scale.data[1] *= 2
    helpers.assert_near(layer(X), _dense(layer, X, layer.dequantized_weight()))
    layer(X).square().sum().backward()
    assert (layer.weight_scale.grad != 0).all()
    assert layer.weight.grad.shape == layer.weight.shape
    with pytest.raises(ValueError, match=r"cannot export 0: method 'ttq' has two scales.*method='lsq'"):
        export_for_inference(nn.Sequential(layer))


@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_converted_layer_starts_at_the_scale_of_twn_and_learns(method: str, granularity: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(378, 3))
    model[0].weight.data *= 7
    options = GRANULARITIES[granularity]
    bittorch.quantize_(model, {"0": TernaryQuantConfig(method=method, **options)})
    _, scale = bittorch.ternary_quantize(model[0].weight, method="twn", **options)
    level = 1.5 if method == "seq" else 1.0
    found = model[0].weight_scale.detach().clone()
    helpers.assert_near(found if method != "ttq" else found[0], level * scale.double())
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.03), []
    x, y = helpers.randn(24, 4, 9, 11), torch.arange(24) % 3
    for _ in range(15):
        losses.append(functional.cross_entropy(model(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model[0].weight_scale.detach(), found)


@pytest.mark.parametrize("options", [*OPTIONS, {"method": "ttq"}], ids=str)
def test_quant_lambda_blends_in_training_alone(options: dict[str, str]) -> None:
    layer = _layer("steps", **options)
    ternary = layer(X)
    layer.quant_lambda = 0.25
    weight = layer.weight.detach().double().lerp(layer.dequantized_weight().double(), 0.25)
    helpers.assert_near(layer(X), _dense(layer, X, weight))
    layer(X).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert torch.equal(layer.eval()(X), ternary)


@pytest.mark.parametrize("options", helpers.slow_but(OPTIONS[:1], OPTIONS), ids=str)
@pytest.mark.parametrize("activation_bits", helpers.slow_but([8], [None, 8]))
def test_traced_and_under_autocast(options: dict[str, str], activation_bits: int | None) -> None:
    torch._dynamo.reset()
    layer = _layer("groups", activation_bits=activation_bits, **options)
    eager, traced = copy.deepcopy(layer), torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(X), eager(X))
    traced(X).sum().backward()
    eager(X).sum().backward()
    assert torch.equal(layer.weight.grad, eager.weight.grad)
    eager.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = eager(X)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, export_for_inference(eager)(X.bfloat16()))
    y.sum().backward()
    assert eager.weight.grad.dtype == torch.float32
    helpers.assert_near(eager.weight.grad, layer.weight.grad.double(), 1e-2)  # x in bfloat16, and its codes


@pytest.mark.parametrize("method", ["lsq", "ttq"])
def test_state_copies_stages_and_empty_batches(method: str) -> None:
    layer = _layer(method=method)
    other = TernaryConv2d(4, 6, 3, config=layer.config)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X))
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))
    assert layer(X[:0]).shape == (0, 6, 7, 9)
    stages = TernaryAfter(nn.Sequential(layer), 1)
    layer.weight.data *= 3
    stages.step()
    layer_scale = layer.weight_scale.detach().clone()
    layer.reset_scale()
    assert torch.equal(layer.weight_scale.detach(), layer_scale)
    helpers.assert_near(layer_scale, 3 * other.weight_scale.detach().double() / 1.1)


@pytest.mark.parametrize("where", ["weight", "weight_scale"])
def test_values_that_are_not_finite_are_seen(where: str) -> None:
    layer = _layer(method="lsq")
    getattr(layer, where).data.view(-1)[3] = torch.nan
    assert layer(X).isnan().any()
    with pytest.raises(ValueError, match=r"cannot export the model: .* must be finite"):
        export_for_inference(layer)
