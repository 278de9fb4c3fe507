"""Adapters of ternary layers: what each form computes and learns, and that merges are what they say."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig
from bittorch.train import adapter_names, add_adapters, merge_adapters, remove_adapter, set_adapter
from tests import helpers

X = helpers.randn(7, 32)
CONFIGS = {
    "row": TernaryQuantConfig(method="twn"),
    "tensor A8": TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8),
    "groups": TernaryQuantConfig(group_size=16),
    "lsq": TernaryQuantConfig(method="lsq"),
    "clipped": TernaryQuantConfig(method="twn", ste="clipped"),
}


def masters(config: TernaryQuantConfig = CONFIGS["row"]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8, bias=False), nn.Linear(8, 4))
    bittorch.quantize_(model, {"0": config, "2": TernaryQuantConfig(method="twn")}, skip="3")
    model(X).sum().backward()  # a learned scale is then one that was trained
    return model


def packed(config: TernaryQuantConfig = CONFIGS["row"]) -> nn.Module:
    return bittorch.export_for_inference(masters(config).eval())


def trained(model: nn.Module, steps: int = 8) -> nn.Module:
    generator = helpers.seeded(3)
    target = torch.randn(7, 4, generator=generator)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("form", ["beside", "grid", "inside"])
def test_adapters_begin_with_nothing_and_train_alone(form: str, config: TernaryQuantConfig) -> None:
    model = masters(config) if form == "inside" else packed(config)
    expected = outputs(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert add_adapters(model, form=form, r=3) == ["0", "2"]
    helpers.assert_same_bits(outputs(model), expected)
    trained(model)
    assert not torch.equal(outputs(model), expected)
    assert {n.rpartition(".")[0].rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} <= {
        "lora_A",
        "lora_B",
        "lora_scale",
    }
    remove_adapter(model, "default")
    helpers.assert_same_bits(outputs(model), expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("form", ["grid", "inside"])
def test_merges_are_exact(form: str, config: TernaryQuantConfig) -> None:
    model = masters(config) if form == "inside" else packed(config)
    codes = _codes(model)
    add_adapters(model, form=form, r=4, k=8.0)
    trained(model)
    expected = outputs(model)
    twin = copy.deepcopy(model)
    report = merge_adapters(model)
    assert (report.exact, report.share, list(report.layers)) == (True, 1.0, ["0", "2"])
    assert "merged bit for bit" in str(report)
    helpers.assert_same_bits(outputs(model), expected)
    assert not torch.equal(_codes(model), codes)
    assert isinstance(model[0], TernaryLinear if form == "inside" else TernaryLinearInference)
    if form == "inside":
        helpers.assert_same_bits(outputs(bittorch.export_for_inference(model.eval())), expected)
        with pytest.raises(
            ValueError, match=r"cannot export 0: it has an adapter inside its quantiser; call .*merge_ada"
        ):
            bittorch.export_for_inference(twin)
        with pytest.raises(ValueError, match=r"cannot export the model: it has an adapter inside"):
            bittorch.export_for_inference(twin[0])
    for copied in (twin, pickle.loads(pickle.dumps(twin))):
        helpers.assert_same_bits(outputs(copied), expected)
    with pytest.raises(ValueError, match="no adapter to merge; one that was merged is part of the layers"):
        merge_adapters(model)


def _codes(model: nn.Module) -> Tensor:
    return model[0].get_quantized_weight()[0].to(torch.int8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=helpers.dtype_id)
def test_grid_in_halves(dtype: torch.dtype) -> None:
    model = packed().to(dtype)
    add_adapters(model, form="grid", r=4, k=8.0)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = value.data + 0.3 * helpers.randn(*value.shape, seed=len(name))
    expected = outputs(model, X.to(dtype))
    merge_adapters(model)
    helpers.assert_same_bits(outputs(model, X.to(dtype)), expected)


@pytest.mark.parametrize(
    "config", [CONFIGS["row"], CONFIGS["groups"], TernaryQuantConfig(granularity="tensor")], ids=str
)
def test_gradients_of_the_grid(config: TernaryQuantConfig) -> None:
    """Against plain torch in float64: straight through where ``|c + D| <= 1.5``, and exact for the scale."""
    model = nn.Sequential(bittorch.export_linear_to_inference(TernaryLinear(32, 24, config=config)))
    add_adapters(model, form="grid", r=4, k=3.0)
    layer = model[0]
    with torch.no_grad():
        layer.lora_B["default"].normal_(generator=helpers.seeded(1))
    y = model(X)
    weights = helpers.randn(*y.shape, seed=9)
    (y * weights).sum().backward()

    a, b, scale = (
        p["default"].detach().double().requires_grad_() for p in (layer.lora_A, layer.lora_B, layer.lora_scale)
    )
    codes = layer.base_layer.get_quantized_weight()[0].double()
    latent = codes + 3.0 * b @ a
    rounded = latent.clamp(-1, 1).round().detach()
    through = torch.where(latent.abs() <= 1.5, latent, latent.detach())
    straight = rounded + through - through.detach()
    assert 0.05 < float((latent.abs() > 1.5).double().mean()) < 0.95  # both cases are here
    factor = scale.repeat_interleave(16, 1) if scale.dim() == 2 else scale.expand(24)[:, None]
    dense = straight * factor
    expected = nn.functional.linear(X.double(), dense, layer.base_layer.bias.double())
    helpers.assert_near(y, expected)
    (expected * weights.double()).sum().backward()
    for found, reference in ((layer.lora_A, a), (layer.lora_B, b), (layer.lora_scale, scale)):
        helpers.assert_near(found["default"].grad, reference.grad)


def test_gradients_inside_the_quantiser_and_beside() -> None:
    for form in ("inside", "beside"):
        torch.manual_seed(0)
        model = nn.Sequential(TernaryLinear(32, 24, config=CONFIGS["row"]))
        base = model[0]
        add_adapters(model, form=form, r=4, k=3.0)
        layer = model[0]
        with torch.no_grad():
            layer.lora_B["default"].normal_(generator=helpers.seeded(1))
        a, b = (p["default"].detach().double().requires_grad_() for p in (layer.lora_A, layer.lora_B))
        delta = 3.0 * b @ a
        twin = copy.deepcopy(base)
        if form == "inside":
            twin.weight.data += delta.float().detach()
        quantised = twin.dequantized_weight().double()
        dense = quantised + delta - (delta.detach() if form == "inside" else 0)
        expected = nn.functional.linear(X.double(), dense, base.bias.double())
        weights = helpers.randn(7, 24, seed=9)
        y = model(X)
        helpers.assert_near(y, expected)
        (y * weights).sum().backward()
        (expected * weights.double()).sum().backward()
        helpers.assert_near(layer.lora_A["default"].grad, a.grad)
        helpers.assert_near(layer.lora_B["default"].grad, b.grad)
        assert base.weight.grad is None


@pytest.mark.parametrize("kind", ["packed", "masters", "planes"])
def test_what_survives_a_merge_by_quantising_again(kind: str) -> None:
    if kind == "planes":
        model = bittorch.quantize_model(nn.Sequential(nn.Linear(32, 24)), depth=3)
    else:
        model = nn.Sequential(packed()[0] if kind == "packed" else masters()[0])
    before = model[0].dequantized_weight().double()
    add_adapters(model, form="beside", r=4, k=1.0)
    with torch.no_grad():
        model[0].lora_B["default"].normal_(generator=helpers.seeded(1)).mul_(0.02)
    delta = model[0].delta("default").detach().double()
    expected = outputs(model)
    with pytest.raises(ValueError, match="an adapter beside a ternary layer has no exact merged form"):
        merge_adapters(model)
    helpers.assert_same_bits(outputs(model), expected)
    report = merge_adapters(model, requantise=True)
    share = float(((model[0].dequantized_weight().double() - before) * delta).sum() / delta.square().sum())
    assert report.share == pytest.approx(share, abs=1e-4)
    assert report.layers == {"0": pytest.approx(share, abs=1e-4)}
    assert not report.exact
    assert f"{share:.1%} of them survives" in str(report)
    assert (share > 0.9) == (kind == "planes")  # a plane alone keeps little of a small change


def test_several_adapters_on_one_base() -> None:
    model = packed()
    bare = outputs(model)
    add_adapters(model, "one", form="grid", r=2, k=8.0, filter_fn="0")
    one = outputs(trained(model))
    add_adapters(model, "two", form="grid", r=3, k=8.0)
    assert not model[0].lora_A["one"].requires_grad  # frozen with the rest
    two = outputs(trained(model))
    assert adapter_names(model) == ["one", "two"]
    for name, expected in (("one", one), (None, bare), ("two", two), ("one", one)):
        set_adapter(model, name)
        helpers.assert_same_bits(outputs(model), expected)
        trainable = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
        assert trainable == {name} - {None}
    with pytest.raises(ValueError, match="0 has other adapters, two, which were trained on the base as it is"):
        merge_adapters(model, "one")
    with pytest.raises(ValueError, match="the model has no adapter 'three'; it has one, two"):
        set_adapter(model, "three")
    with pytest.raises(ValueError, match="the model has no adapter ''; it has one, two"):
        merge_adapters(model, "")
    remove_adapter(model, "two")
    assert isinstance(model[2], TernaryLinearInference)
    helpers.assert_same_bits(outputs(model), one)  # still active
    set_adapter(model, None)
    with pytest.raises(ValueError, match=r"name the adapter to merge: active are none, the model has \['one'\]"):
        merge_adapters(model)
    merge_adapters(model, "one")
    helpers.assert_same_bits(outputs(model), one)


def test_a_layer_in_two_places_stays_one() -> None:
    layer = packed()[2]
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    assert add_adapters(model, form="grid", r=2) == ["a"]
    assert model["a"] is model["b"][0]
    merge_adapters(model)
    assert model["a"] is model["b"][0]


def test_the_doctor_of_conversion_leaves_adapters() -> None:
    model = nn.Sequential(packed()[0], nn.Linear(24, 4))
    add_adapters(model, form="beside", r=2)
    report = bittorch.quantize_(model)
    assert report.converted == ("1",)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"form": "in"}, ValueError, "form must be one of 'beside', 'grid', 'inside', got 'in'"),
        ({"form": "grid", "r": 0}, ValueError, "r must be an integer from 1 on"),
        ({"form": ["grid"]}, ValueError, r"form must be one of .*, got \['grid'\]"),
        ({"form": "grid", "k": -1.0}, ValueError, "k must be a positive number, got -1.0"),
        ({"form": "grid", "k": float("inf")}, ValueError, "k must be a positive number, got inf"),
        ({"form": "grid", "k": "2"}, ValueError, "k must be a positive number, got '2'"),
        ({"form": "grid", "name": "a.b"}, ValueError, "a word without dots, got 'a.b'"),
        ({"form": "grid", "name": "keys"}, ValueError, "a word without dots, got 'keys'"),
        ({"form": "inside"}, ValueError, "no layer gets an adapter: form 'inside' takes TernaryLinear"),
        ({"form": "grid", "filter_fn": lambda layer, name: False}, ValueError, "no layer gets an adapter"),
    ],
    ids=lambda v: None,
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        add_adapters(packed(), **options)


def test_layers_that_cannot_have_the_form() -> None:
    planes = bittorch.quantize_model(nn.Sequential(nn.Linear(32, 24)), depth=2)
    with pytest.raises(ValueError, match="0 has depth=2; use 'beside'"):
        add_adapters(planes, form="grid")
    with pytest.raises(TypeError, match="the model itself is the layer"):
        add_adapters(planes[0], form="beside")
    model = packed()
    add_adapters(model, "one", form="beside")
    for name, form, text in (("one", "beside", "0 has an adapter 'one' already"), ("two", "grid", "of form 'beside'")):
        with pytest.raises(ValueError, match=text):
            add_adapters(model, name, form=form)
    exported = masters()
    add_adapters(exported, form="inside")
    exported[0]._modules["base_layer"] = packed()[0]
    with pytest.raises(TypeError, match="an adapter 'inside' needs a TernaryLinear"):
        exported(X)
