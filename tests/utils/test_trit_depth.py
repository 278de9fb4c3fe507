"""Models converted to trit planes without training."""

import copy
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig, quantize_, quantize_model
from bittorch.utils import checkpoint, summary, trit_depth
from tests import helpers


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return x + gain * self.down(self.up(x).relu())


def _model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), _Block(), _Block(), nn.LayerNorm(16), nn.Linear(16, 4))


ALL = ["0", "1.up", "1.down", "2.up", "2.down", "4"]
GROUPS = TernaryQuantConfig(granularity="group", group_size=8)


def _depths(model: nn.Module) -> dict[str, int]:
    return {name: m.depth for name, m in model.named_modules() if isinstance(m, TernaryLinearInference)}


def _stored_bits(model: nn.Module) -> float:
    """Bits a weight over all packed layers, counted from their tensors."""
    layers = [m for m in model.modules() if isinstance(m, TernaryLinearInference)]
    stored = sum(8 * m.weight_packed.numel() + 32 * m.scale.numel() for m in layers)
    return stored / sum(m.in_features * m.out_features for m in layers)


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("config", [None, GROUPS, TernaryQuantConfig(activation_bits=24)], ids=["row", "group", "A24"])
def test_model_computes_with_the_grid_weights(depth: int, config: TernaryQuantConfig | None) -> None:
    model, x = _model(), helpers.randn(5, 8)
    converted = quantize_model(model, config, depth=depth)
    assert _depths(converted) == dict.fromkeys(ALL, depth)
    expected = copy.deepcopy(model).double()
    for name in ALL:
        weight, arguments = model.get_submodule(name).weight, (("group", 8) if config is GROUPS else ())
        planes = bittorch.quant.trit_planes(weight, depth, *arguments)
        expected.get_submodule(name).weight.data = bittorch.quant.from_trit_planes(*planes, torch.float64)
    helpers.assert_near(converted(x), expected(x.double()), 2e-6)


def test_copy_leaves_the_model_alone_and_in_place_changes_it() -> None:
    model, x = _model(), helpers.randn(5, 8)
    before, y = copy.deepcopy(model.state_dict()), model(x)
    converted = quantize_model(model, depth=3)
    assert _depths(model) == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert converted[3].weight is not model[3].weight
    assert torch.equal(model(x), y)
    assert quantize_(model, depth=3).converted == tuple(_depths(model))
    helpers.assert_same_bits(model(x), converted(x))


def test_root_layer_becomes_planes() -> None:
    linear = nn.Linear(8, 4)
    assert isinstance(quantize_model(linear, depth=2), TernaryLinearInference)
    with pytest.raises(ValueError, match="cannot change in place"):
        quantize_(linear, depth=2)


@pytest.mark.parametrize(
    ("depth", "more", "expected"),
    [
        ({"*.up": 2, "1.*": 5, "4": None}, {}, {"1.up": 2, "1.down": 5, "2.up": 2}),
        ({"4": None, "*": 3}, {}, dict.fromkeys(ALL[:-1], 3)),
        (2, {"skip": ["0", "4"]}, dict.fromkeys(ALL[1:-1], 2)),
        (2, {"filter_fn": "1.*"}, {"1.up": 2, "1.down": 2}),
        (2, {"filter_fn": lambda module, name: module.bias is None}, {"1.down": 2, "2.down": 2}),
        (2, {"config": {"1.up": TernaryQuantConfig(), "4": None}}, {"1.up": 2}),
    ],
    ids=["first match", "left", "skip", "pattern", "predicate", "configs"],
)
def test_depths_by_pattern(depth: object, more: dict[str, object], expected: dict[str, int]) -> None:
    assert _depths(quantize_model(_model(), depth=depth, **more)) == expected


def test_config_gives_granularity_and_activation_bits() -> None:
    config = {"1.*": GROUPS, "*": TernaryQuantConfig(granularity="tensor", activation_bits=8)}
    model = quantize_model(_model(), config, depth=2)
    assert (model[1].up.groups, model[1].down.groups, model[2].up.groups) == (2, 4, 1)
    assert (model[1].up.activation_bits, model[2].up.activation_bits) == (None, 8)
    assert len(model[2].up.scale.view(2, -1)[0].unique()) == 1


def test_shared_layer_stays_one_and_tied_weights_share_their_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], TernaryLinearInference.from_linear
    monkeypatch.setattr(TernaryLinearInference, "from_linear", lambda *args: made.append(args) or make(*args))
    layer, embedding, head, twin = nn.Linear(8, 8), nn.Embedding(10, 8), nn.Linear(8, 10, bias=False), nn.Linear(8, 10)
    head.weight = twin.weight = embedding.weight
    model = nn.ModuleList([embedding, layer, layer, head, twin])
    converted = quantize_model(model.train(False), depth=3)
    assert len(made) == 2  # a tied weight is quantised once
    assert converted[1] is converted[2]
    assert (converted[3].bias, converted[3].training) == (None, False)
    assert torch.equal(converted[4].bias, twin.bias)
    assert converted[3].weight_packed is converted[4].weight_packed
    assert converted[3].scale is converted[4].scale
    assert torch.equal(converted[0].weight, embedding.weight)
    path = tmp_path / "model.safetensors"
    bittorch.save_ternary_inference_checkpoint(converted, path)
    assert path.stat().st_size < 4000
    loaded = bittorch.load_ternary_inference_checkpoint(copy.deepcopy(model), path)
    x = helpers.randn(2, 8)
    assert loaded[1] is loaded[2]
    for a, b in zip(loaded[1:], converted[1:], strict=True):
        helpers.assert_same_bits(a(x), b(x))


def test_converting_again_changes_nothing() -> None:
    model = quantize_model(_model(), depth=2)
    layers = [model.get_submodule(name) for name in ALL]
    quantize_(model, depth=4)
    quantize_(model)
    assert [model.get_submodule(name) for name in ALL] == layers
    trained = quantize_model(_model())
    quantize_(trained, depth=4)
    assert all(isinstance(trained.get_submodule(name), TernaryLinear) for name in ALL)


def test_training_mode_is_kept() -> None:
    for training in (True, False):
        assert quantize_model(_model().train(training), depth=2)[0].training == training


def test_convolutions_stay_with_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.warns(UserWarning, match="nn.Linear; convolutions and embeddings stay as they are: 0") as caught:
        converted = quantize_model(model, depth=2)
    assert caught[0].filename == __file__
    assert "left are Conv2d, 112 parameters: trit depth is for linear layers" in str(caught[1].message)
    assert isinstance(converted[0], nn.Conv2d)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantize_model(model, depth=2, skip="0")[2].depth == 2
        assert quantize_model(model, depth={"2": 2})[2].depth == 2


def test_patterns_without_a_layer_warn_with_near_names() -> None:
    for arguments in ({"depth": {"1.upp": 2}}, {"depth": 2, "skip": "1.upp"}, {"depth": 2, "filter_fn": "1.upp"}):
        with pytest.warns(UserWarning, match=r"'1\.upp' matches no layer .* 1\.up") as caught:
            quantize_model(_model(), **arguments)
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match=r"'1\.upp'") as caught:
            quantize_(_model(), **arguments)
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="no layer that can become ternary"):
        quantize_model(nn.Sequential(nn.ReLU()), depth=2)


@helpers.each(
    ("arguments", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be from 1 to 6, got 0"),
        ({"depth": 7}, ValueError, "depth must be from 1 to 6, got 7"),
        ({"depth": True}, TypeError, "depth must be an integer from 1 to 6, got True"),
        ({"depth": 2.0}, TypeError, r"depth must be an integer from 1 to 6, got 2\.0"),
        ({"depth": {"nosuch": 9}}, ValueError, "depth must be from 1 to 6, got 9"),
        ({"depth": 2, "bits_per_weight": 4}, ValueError, "depth=2 and bits_per_weight=4 are two answers"),
        ({"depth": 2, "inputs": []}, ValueError, "inputs .* go with bits_per_weight alone"),
        ({"inputs": []}, ValueError, "inputs .* go with bits_per_weight alone"),
        ({"depth": {0: 3}}, TypeError, "depth must map name patterns, which are strings, got 0"),
        ({"bits_per_weight": 9, "inputs": 5}, TypeError, "inputs must be batches, such as .batch. for one, got int"),
        ({"bits_per_weight": 9, "inputs": {"input": helpers.randn(2, 8)}}, TypeError, "must be batches, .* got dict"),
        ({"bits_per_weight": 9, "inputs": helpers.randn(2, 8)}, TypeError, "inputs must be batches, .* got Tensor"),
        ({"bits_per_weight": 0}, ValueError, "bits_per_weight must be a positive number, got 0"),
        ({"bits_per_weight": math.nan}, ValueError, "bits_per_weight must be a positive number, got nan"),
        ({"bits_per_weight": "4"}, ValueError, "bits_per_weight must be a positive number, got '4'"),
        ({"bits_per_weight": 2.1}, ValueError, r"bits_per_weight=2\.1 is below the 3\.6\d\d that depth 1 takes"),
        (
            {"depth": 2, "config": TernaryQuantConfig(method="optimal")},
            ValueError,
            "cannot convert 0: .*method='optimal'",
        ),
        ({"depth": 2, "config": TernaryQuantConfig(ste="clipped")}, ValueError, "cannot convert 0: .*ste='clipped'"),
        (
            {"depth": 2, "config": TernaryQuantConfig(granularity="group", group_size=16)},
            ValueError,
            "cannot convert 0: group_size must divide in_features, got group_size=16 and in_features=8",
        ),
        (
            {"bits_per_weight": 20, "config": TernaryQuantConfig(granularity="group", group_size=16)},
            ValueError,
            "cannot convert 0: group_size must divide in_features, got group_size=16 and in_features=8",
        ),
    ],
)
def test_bad_arguments_raise_and_nothing_changes(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    model = _model()
    with pytest.raises(error, match=message):
        quantize_(model, **arguments)
    assert _depths(model) == {}


def test_layers_that_cannot_be_converted_are_named() -> None:
    for arguments in ({"depth": 2}, {"bits_per_weight": 10}):
        model = _model()
        model[1].up.weight.data[0, 0] = torch.inf
        with pytest.raises(ValueError, match=r"cannot convert 1\.up: w must be finite"):
            quantize_(model, **arguments)
        model[1].up.to("meta")
        with pytest.raises(ValueError, match=r"cannot convert 1\.up: its weight is on the meta device"):
            quantize_(model, **arguments)


def test_encoder_of_planes_calls_them() -> None:  # FIELD T9
    encoder = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    converted = quantize_model(encoder, depth=6)
    x, called = helpers.randn(3, 5, 32), []
    converted.linear1.register_forward_hook(lambda *_: called.append(1))
    with torch.inference_mode():
        helpers.assert_near(converted(x), encoder(x), 2e-2)
    assert called
    assert encoder.activation_relu_or_gelu == 1


@pytest.mark.parametrize("budget", [3.7, 5.0, 8.0, 12.25, 100.0])
@pytest.mark.parametrize("calibrated", [False, True])
def test_budget_is_kept_and_used(budget: float, calibrated: bool) -> None:
    model = _model().train()
    inputs = [helpers.randn(20, 8), (helpers.randn(3, 4, 8),)] if calibrated else None
    converted = quantize_model(model, bits_per_weight=budget, inputs=inputs)
    assert list(_depths(converted)) == ALL
    assert _stored_bits(converted) <= budget
    if budget == 100:
        assert set(_depths(converted).values()) == {6}
    else:  # no layer could have had one plane more
        layers = [converted.get_submodule(name) for name in ALL]
        weights = sum(m.in_features * m.out_features for m in layers)
        plane = min((8 * m.weight_packed.numel() + 32 * m.scale.numel()) / m.depth for m in layers if m.depth < 6)
        assert _stored_bits(converted) + plane / weights > budget
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_exact_budget_of_a_depth_gives_it() -> None:
    linear = nn.Sequential(nn.Linear(12, 5))
    for depth in range(1, 7):
        bits = depth * (2 + 32 / 12)
        assert _depths(quantize_model(linear, bits_per_weight=bits)) == {"0": depth}


@pytest.mark.parametrize("calibrated", [False, True])
def test_tied_weights_cost_once_and_share_a_depth(calibrated: bool) -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12))
        model[1].weight = model[0].weight
        return model

    inputs = [helpers.randn(20, 12)] if calibrated else None
    plane = 2 + 32 / 12
    converted = quantize_model(tied(), bits_per_weight=2.5 * plane, inputs=inputs)  # five planes for two weights
    assert converted[0].weight_packed is converted[1].weight_packed
    assert _depths(converted) == {"0": 3, "1": 3, "2": 2}  # the tied planes serve two layers
    codes_of_their_own = {"0": TernaryQuantConfig(activation_bits=8), "*": TernaryQuantConfig()}
    depths = _depths(quantize_model(tied(), codes_of_their_own, bits_per_weight=2 * plane, inputs=inputs))
    assert sorted(depths.values()) == [2, 2, 2]


def _with_outliers() -> tuple[nn.ModuleList, torch.Tensor]:
    """Two layers of one size, the second with a column of outliers that the activations never reach."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 16, bias=False), nn.Linear(64, 16, bias=False)])
    for layer in model:
        layer.weight.data = torch.randn(16, 64)
    model[1].weight.data[:, 0] *= 20
    x = torch.randn(128, 64)
    x[:, 0] = 0
    return model, x


def test_activations_weigh_errors() -> None:
    model, x = _with_outliers()
    weight = model[1].weight.detach()
    quantized = bittorch.quant.from_trit_planes(*bittorch.quant.trit_planes(weight, 3), torch.float64)
    blind = trit_depth._error(weight, 3, TernaryQuantConfig(), None)
    seen = trit_depth._error(weight, 3, TernaryQuantConfig(), x)
    difference = weight - quantized
    assert blind == pytest.approx(float(difference.square().sum() / weight.double().square().sum()), rel=1e-5)
    expected = (x.double() @ difference.T).square().sum(1) / (x.double() @ weight.double().T).square().sum(1)
    assert seen == pytest.approx(float(expected.mean()), rel=1e-5)
    assert seen > 2 * blind


def test_a_token_of_large_activations_hides_no_other() -> None:
    model, x = _with_outliers()
    weight = model[1].weight.detach()
    seen = trit_depth._error(weight, 2, TernaryQuantConfig(), x)
    x[0, 0] = 1000  # a token that the large column alone decides, whose relative error is next to nothing
    assert trit_depth._error(weight, 2, TernaryQuantConfig(), x) > 0.9 * seen
    x[1] = 0
    assert 0.9 * seen < trit_depth._error(weight, 2, TernaryQuantConfig(), x) < 1.1 * seen


def test_planes_go_where_error_falls() -> None:
    depths = []
    for weigh in (False, True):
        model, x = _with_outliers()
        model.forward = lambda x, model=model: model[1](x) + model[0](x)
        quantize_(model, bits_per_weight=10, inputs=[x] if weigh else None)
        depths.append(_depths(model))
    assert depths == [{"0": 4, "1": 4}, {"0": 3, "1": 5}]


def test_greedy_choice_equals_the_best_of_all_where_errors_fall_evenly() -> None:
    errors = {"a": [0.9, 0.1, 0.01, 0.001, 1e-4, 1e-5], "b": [0.5, 0.2, 0.1, 0.05, 0.01, 0.005]}
    prices = {"a": 10, "b": 10}
    for budget in range(20, 121, 10):
        best = min(
            errors["a"][a - 1] + errors["b"][b - 1] for a in range(1, 7) for b in range(1, 7) if 10 * (a + b) <= budget
        )
        depths = trit_depth._spend(errors, prices, budget)
        assert errors["a"][depths["a"] - 1] + errors["b"][depths["b"] - 1] == best


def test_step_of_several_planes_over_a_flat_start() -> None:
    errors = {"flat": [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "even": [0.3, 0.2, 0.1, 0.09, 0.08, 0.07]}
    assert trit_depth._spend(errors, {"flat": 1, "even": 1}, 4) == {"flat": 3, "even": 1}


def test_inputs_by_position_and_keyword() -> None:
    block = _Block()
    batches = [{"x": helpers.randn(2, 16), "gain": 2.0}, [helpers.randn(16)], helpers.randn(0, 16)]
    assert set(_depths(quantize_model(block, bits_per_weight=10, inputs=batches))) == {"up", "down"}


def test_activations_that_a_layer_gets_by_keyword() -> None:
    model = nn.ModuleList([nn.Linear(8, 4)])
    model.forward = lambda x: model[0](input=x)
    quantize_(model, bits_per_weight=20, inputs=[helpers.randn(3, 8)])
    assert _depths(model) == {"0": 3}


def test_inputs_that_say_nothing_raise() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"inputs never reach 0, 1\.up, 1\.down"):
        quantize_model(model, bits_per_weight=10, inputs=[])
    with pytest.raises(ValueError, match="inputs bring NaN or Inf to 0"):
        quantize_model(model, bits_per_weight=10, inputs=[torch.full((2, 8), torch.nan)])
    with pytest.raises(RuntimeError):
        quantize_model(model, bits_per_weight=10, inputs=[torch.ones(2, 9)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("config", [None, GROUPS], ids=["row", "group"])
def test_summary_shows_depth_bits_and_error(config: TernaryQuantConfig | None) -> None:
    model = _model()
    converted = quantize_model(model, config, depth=3)
    first = summary(converted, model).layers[0]
    groups = 1  # 8 columns are one group
    assert (first.depth, first.shape, first.kind) == (3, (16, 8), "TernaryLinearInference")
    assert first.bits_per_weight == pytest.approx(6 + 3 * 32 * groups / 8)
    assert first.dense_bits == pytest.approx((3 * 2 * 8 + 32 * groups) / 8)  # 8 trits take 2 bytes
    assert first.negative + first.zero + first.positive == pytest.approx(1)
    dense = model[0].weight.detach().double()
    error = (converted[0].dequantized_weight(torch.float64) - dense).square().sum() / dense.square().sum()
    assert first.relative_error == pytest.approx(float(error))
    assert summary(converted).layers[0].relative_error is None
    found = summary(converted)
    assert found.bytes == sum(t.numel() * t.element_size() for t in converted.state_dict().values())
    assert found.dense_bytes == sum(4 * p.numel() for p in model.parameters())
    assert str(found).splitlines()[1].split()[:3] == ["0", "16x8", "3"]


def test_summary_refuses_another_reference() -> None:
    with pytest.raises(ValueError, match=r"0 has weights \(16, 8\), but \(16, 9\) in the reference"):
        summary(quantize_model(_model(), depth=2), nn.Sequential(nn.Linear(9, 16)))
    assert summary(quantize_model(_model(), depth=2), nn.ReLU()).layers[0].relative_error is None


@pytest.mark.parametrize("target", ["dense", "meta", "converted", "other depth"])
def test_checkpoint_round_trip(tmp_path: Path, target: str) -> None:
    path, x = tmp_path / "model.safetensors", helpers.randn(5, 8)
    depths = {"0": 2, "1.*": 4, "4": 1, "*": 3}
    model = quantize_model(_model(), {"2.*": GROUPS, "*": TernaryQuantConfig(activation_bits=8)}, depth=depths)
    bittorch.save_ternary_inference_checkpoint(model, path)
    with torch.device("meta" if target == "meta" else "cpu"):
        fresh = _model() if target in ("dense", "meta") else quantize_model(_model(), depth=depths)
    if target == "other depth":
        fresh = quantize_model(_model(), depth=6)
    loaded = bittorch.load_ternary_inference_checkpoint(fresh, path)
    assert _depths(loaded) == _depths(model)
    helpers.assert_same_bits(loaded(x), model.eval()(x))


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (2, r"weight_packed must be \(32, 2\) for in_features=8, .* depth=2, got \(48, 2\)"),
        (9, "depth must be from 1 to 6, got 9"),
        (2.0, "depth must be an integer"),
        (True, "depth must be an integer"),
    ],
)
def test_depth_that_the_tensors_contradict_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: object, message: str
) -> None:
    path, original = tmp_path / "model.safetensors", checkpoint.layer_config
    monkeypatch.setattr(checkpoint, "layer_config", lambda layer: {**original(layer), "depth": depth})
    bittorch.save_ternary_inference_checkpoint(quantize_model(_model(), depth=3), path)
    with pytest.raises(ValueError, match=message):
        bittorch.load_ternary_inference_checkpoint(_model(), path)


def test_file_of_depth_1_says_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bittorch.save_ternary_inference_checkpoint(quantize_model(_model(), depth={"0": 2, "*": 1}), path)
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()["bittorch"])["layers"]
    assert layers["0"]["depth"] == 2
    assert all("depth" not in config for name, config in layers.items() if name != "0")
