"""Layers whose gradient does not go straight through: learned scales, the clipped estimator, warm-up."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import bittorch
from bittorch import TernaryLinear, TernaryQuantConfig, export_for_inference
from bittorch.quant import learned
from tests import helpers

GRANULARITIES = {
    "tensor": {"granularity": "tensor"},
    "channel": {},
    "group": {"granularity": "group", "group_size": 16},
}
OPTIONS = [
    {"method": "lsq"},
    {"method": "seq"},
    {"ste": "clipped", "scale": "rms"},
    {"ste": "clipped", "method": "absmean"},
]


def _layer(dtype: torch.dtype = torch.float32, **config: object) -> TernaryLinear:
    torch.manual_seed(1)
    return TernaryLinear(48, 20, config=TernaryQuantConfig(**config), dtype=dtype)


@helpers.each("options", OPTIONS, ids=str)
@helpers.each("granularity", GRANULARITIES)
@helpers.each("activation_bits", [None, 8, 16, 24])
@helpers.each("dtype", [torch.float32, torch.bfloat16], ids=helpers.dtype_id)
def test_export_gives_the_bits_of_eval(
    options: dict[str, str], granularity: str, activation_bits: int | None, dtype: torch.dtype
) -> None:
    layer = _layer(dtype, activation_bits=activation_bits, **options, **GRANULARITIES[granularity])
    if layer.weight_scale is not None:
        layer.weight_scale.data *= 1.1
    x = helpers.randn(5, 48, dtype=dtype)
    trained = layer(x)
    layer.eval()
    assert torch.equal(layer(x), export_for_inference(layer)(x))
    assert torch.equal(layer(x), trained)
    if activation_bits is None:
        exact = linear(x.double(), layer.float().dequantized_weight().double(), layer.bias.double())
        helpers.assert_near(trained, exact)


@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_learned_scale_starts_at_that_of_twn_and_learns(method: str, granularity: str) -> None:
    layer = _layer(method=method, **GRANULARITIES[granularity])
    rule = TernaryQuantConfig(method="twn", **GRANULARITIES[granularity])
    _, scale = bittorch.TernaryQuantizer(rule).quantize_packed(layer.weight)
    if method == "ttq":
        assert torch.equal(layer.weight_scale.detach(), torch.stack([scale, scale]))
    else:
        helpers.assert_near(layer.quantize_packed()[1], scale.double())
    x, y = helpers.randn(256, 48), helpers.randn(256, 20, seed=2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    losses = []
    for _ in range(10):
        loss = nn.functional.mse_loss(layer(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (layer.weight_scale.grad != 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("backend", ["auto", "python"])
def test_gradients_are_those_of_the_dense_weight(
    options: dict[str, str], activation_bits: int | None, backend: str
) -> None:
    layer = _layer(activation_bits=activation_bits, **options)
    layer.backend = backend
    x = helpers.randn(5, 48).requires_grad_()
    g = helpers.randn(5, 20, seed=9)
    layer(x).backward(g)
    codes = helpers.act_codes(x.detach(), 8) if activation_bits else None
    quantized_x = x.detach().double() if codes is None else codes * bittorch.ops.act_quantize(x.detach(), 8)[1].double()
    dense = (g.double().t() @ quantized_x).float()
    master = layer.weight.detach().clone().requires_grad_()
    if layer.weight_scale is None:
        learned.clipped(master, layer.quantize_packed()[1]).backward(dense)
    else:
        step = layer.weight_scale.detach().clone().requires_grad_()
        learned.route(master, step, layer.config.method).backward(dense)
        helpers.assert_near(layer.weight_scale.grad, step.grad.double())
    assert (master.grad == 0).any()
    helpers.assert_near(layer.weight.grad, master.grad.double())
    helpers.assert_near(x.grad, g.double() @ layer.dequantized_weight().double())


def test_ttq_trains_densely_and_does_not_export() -> None:
    layer = _layer(method="ttq")
    layer.weight_scale.data[1] *= 2
    x = helpers.randn(5, 48)
    assert torch.equal(layer(x), linear(x, layer.dequantized_weight(), layer.bias))
    values = layer.dequantized_weight()[0].unique()
    assert values[0] == pytest.approx(-2 * values[2].item())
    with pytest.raises(ValueError, match=r"cannot export 0: method 'ttq' has two scales.*method='lsq'"):
        export_for_inference(nn.Sequential(layer))
    assert bittorch.utils.summary(layer).layers == ()
    assert bittorch.utils.AccuracyDoctor(layer).check() == []


@pytest.mark.parametrize("method", ["lsq", "seq"])
def test_state_dict_copy_and_reset(method: str) -> None:
    layer = _layer(method=method)
    layer.weight_scale.data *= 1.5
    other = _layer(method=method)
    other.load_state_dict(layer.state_dict())
    x = helpers.randn(3, 48)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer.reset_parameters()
    _, scale = bittorch.ternary_quantize(layer.weight, method="twn")
    helpers.assert_near(layer.quantize_packed()[1], scale.double())


# FIELD R4
@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
def test_one_group_a_row_is_a_scale_a_row(method: str) -> None:
    groups = _layer(method=method, granularity="group", group_size=48)
    rows = _layer(method=method)
    assert groups.weight_scale.shape == rows.weight_scale.shape
    assert torch.equal(groups.weight_scale, rows.weight_scale)
    x = helpers.randn(5, 48)
    outputs = [layer(x) for layer in (groups, rows)]
    assert torch.equal(*outputs)
    for y in outputs:
        y.square().sum().backward()
    assert torch.equal(groups.weight_scale.grad, rows.weight_scale.grad)
    converted = bittorch.TernaryLinear.from_linear(nn.Linear(48, 20), groups.config)
    assert converted.weight_scale.shape == rows.weight_scale.shape
    if method != "ttq":
        groups.eval()
        assert torch.equal(groups(x), export_for_inference(groups)(x))


@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
def test_conversion_starts_the_scale_from_the_weights(method: str) -> None:
    model = nn.Sequential(nn.Linear(48, 20))
    model[0].weight.data *= 7
    bittorch.quantize_(model, TernaryQuantConfig(method=method))
    _, scale = bittorch.ternary_quantize(model[0].weight, method="twn")
    level = 1.5 if method == "seq" else 1.0
    found = model[0].weight_scale.detach()
    helpers.assert_near(found if method != "ttq" else found[0], level * scale.double())


@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
def test_dense_checkpoint_starts_the_scale_anew(method: str) -> None:
    layer, dense = _layer(method=method), nn.Linear(48, 20)
    dense.weight.data *= 7
    layer.load_state_dict({"weight": dense.weight, "bias": dense.bias}, strict=False)
    found = layer.weight_scale.detach().clone()
    layer.reset_scale()
    assert torch.equal(found, layer.weight_scale)
    weight = dense.weight.detach()
    assert float((layer.dequantized_weight() - weight).norm() / weight.norm()) < 0.6


def test_learned_scale_of_groups_needs_columns() -> None:
    with pytest.raises(ValueError, match="learned scale per group needs in_features above 0"):
        TernaryLinear(0, 4, config=TernaryQuantConfig(method="lsq", granularity="group"))


@pytest.mark.parametrize("method", ["lsq", "ttq"])
def test_scale_of_a_frozen_weight_is_frozen(method: str) -> None:
    model = nn.Sequential(nn.Linear(48, 20), nn.Linear(20, 4))
    model[0].requires_grad_(False)
    bittorch.quantize_(model, TernaryQuantConfig(method=method))
    assert [layer.weight_scale.requires_grad for layer in model] == [False, True]


def test_layer_on_meta_gets_its_scale_when_it_is_reset() -> None:
    with torch.device("meta"):
        layer = TernaryLinear(8, 4, config=TernaryQuantConfig(method="lsq"))
    layer.to_empty(device="cpu").reset_parameters()
    assert (layer.weight_scale > 0).all()


@pytest.mark.parametrize("where", ["weight", "weight_scale"])
def test_values_that_are_not_finite_are_seen(where: str) -> None:
    layer = _layer(method="lsq")
    getattr(layer, where).data.view(-1)[3] = torch.nan
    assert layer(helpers.randn(2, 48)).isnan().any()
    with pytest.raises(ValueError, match=r"cannot export the model: .* must be finite"):
        export_for_inference(layer)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_and_under_autocast(options: dict[str, str]) -> None:
    layer = _layer(**options)
    x = helpers.randn(5, 48)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    eager, traced = copy.deepcopy(layer), compiled
    assert torch.equal(traced(x), eager(x))
    traced(x).sum().backward()
    eager(x).sum().backward()
    assert torch.equal(layer.weight.grad, eager.weight.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    helpers.assert_near(y, eager(x).double())


@pytest.mark.parametrize("options", helpers.slow_but(OPTIONS[:1], OPTIONS), ids=str)
def test_two_layers_compile_with_dynamic_shapes(options: dict[str, str]) -> None:
    torch._dynamo.reset()
    eager, traced = (nn.Sequential(_layer(**options), nn.Linear(20, 48), _layer(**options)) for _ in range(2))
    traced.load_state_dict(eager.state_dict())
    run = torch.compile(traced, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 3):
        x = helpers.randn(rows, 48)
        y = run(x)
        helpers.assert_near(y, eager(x).double())
        y.sum().backward()
        eager(x).sum().backward()
    for a, b in zip(traced.parameters(), eager.parameters(), strict=True):
        helpers.assert_near(a.grad, b.grad.double())


@pytest.mark.parametrize("options", [{}, {"method": "lsq"}, {"ste": "clipped"}, {"method": "ttq"}], ids=str)
def test_quant_lambda_blends_in_training_alone(options: dict[str, str]) -> None:
    layer, x = _layer(**options), helpers.randn(5, 48)
    ternary = layer(x)
    layer.quant_lambda = 0.0
    helpers.assert_near(layer(x), linear(x, layer.weight, layer.bias).double())
    layer.quant_lambda = 0.25
    weight = layer.weight + 0.25 * (layer.dequantized_weight() - layer.weight)
    helpers.assert_near(layer(x), linear(x, weight, layer.bias).double())
    layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert torch.equal(layer.eval()(x), ternary)


def test_quant_lambda_blends_the_activations_too() -> None:
    layer, x = _layer(activation_bits=8), helpers.randn(5, 48)
    layer.quant_lambda = 0.5
    codes, scale = bittorch.ops.act_quantize(x)
    weight = (layer.weight + layer.dequantized_weight()) / 2
    helpers.assert_near(layer(x), linear((x + codes * scale) / 2, weight, layer.bias).double())


@pytest.mark.parametrize("method", ["lsq", "seq", "ttq"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_casts_leave_the_learned_scale_in_float32(method: str, dtype: torch.dtype) -> None:  # FIELD T19
    layer = nn.Sequential(TernaryLinear(16, 8, config=TernaryQuantConfig(method=method)))
    layer(helpers.randn(3, 16)).sum().backward()
    scale, before = layer[0].weight_scale, layer[0].weight_scale.detach().clone()
    for cast in (lambda: layer.to(dtype), lambda: layer.float(), lambda: layer.to("cpu", dtype), layer.half):
        cast()
        assert layer[0].weight_scale is scale
        assert torch.equal(scale, before)
        assert (scale.dtype, scale.grad.dtype) == (torch.float32, torch.float32)
    assert layer[0].weight.dtype == torch.float16
    x = helpers.randn(3, 16, dtype=torch.float16)
    if method != "ttq":
        assert torch.equal(bittorch.export_for_inference(layer)(x), layer.eval()(x))
