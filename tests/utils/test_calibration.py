"""Whole models whose planes are chosen by activations."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import Calibration, TernaryLinearInference, TernaryQuantConfig, quantize_, quantize_model
from bittorch.quant import compensated_integers, pack_trit_planes
from bittorch.quant.trit_planes import from_grid, pack_grid
from bittorch.utils import calibration
from tests import helpers

GROUPS = TernaryQuantConfig(granularity="group", group_size=8)
ORDER = ["first", *(f"layers.{i}.{name}" for i in (0, 1) for name in ("q", "k", "down")), "head"]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.q, self.k = nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(16, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down((self.q(x) * self.k(x)).tanh())


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(_Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _batches(count: int = 3) -> list[Tensor]:
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    return [helpers.randn(40, 8) @ mix for _ in range(count)]


def _planes(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, TernaryLinearInference)}
    return {name: (layer.weight_packed, layer.scale) for name, layer in layers.items()}


def _same(one: nn.Module, other: nn.Module) -> bool:
    a, b = _planes(one), _planes(other)
    return a.keys() == b.keys() and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


def _inputs_of(model: nn.Module, name: str, batches: list[Tensor]) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return torch.cat(seen)


def _by_hand(model: nn.Module, batches: list[Tensor], depth: int, config: TernaryQuantConfig) -> dict[str, Any]:
    """Layer after layer: the whole model is called for each, with the weights that were chosen before."""
    planes, grouping = {}, config.grouping
    blocks = (stage for i in (0, 1) for stage in ([f"layers.{i}.q", f"layers.{i}.k"], [f"layers.{i}.down"]))
    for names in (["first"], *blocks, ["head"]):
        x = _inputs_of(model, names[0], batches).double()
        for name in names:
            layer = model.get_submodule(name)
            q, scale = compensated_integers(layer.weight, x.T @ x, depth, *grouping)
            planes[name] = pack_grid(q, scale, depth)
            layer.weight.data = from_grid(q, scale)
    return planes


@pytest.mark.parametrize("config", [TernaryQuantConfig(), GROUPS], ids=["row", "group"])
def test_each_layer_sees_what_converted_layers_give(config: TernaryQuantConfig) -> None:
    model, batches = _Net().train(), _batches()
    before = {name: (value, value.clone()) for name, value in model.named_parameters()}
    told: list[tuple[int, int, str]] = []
    how = Calibration(iter(batches), progress=lambda *said: told.append(said))
    converted = quantize_model(model, config, depth=2, calibrate=how)
    assert all(
        value is own and torch.equal(value, held)
        for (name, value), (own, held) in zip(model.named_parameters(), before.values(), strict=True)
    )
    assert all(module.training for module in model.modules())
    assert told == [(i + 1, len(ORDER), name) for i, name in enumerate(ORDER)]
    expected = _by_hand(_Net(), batches, 2, config)
    found = _planes(converted)
    assert set(found) == set(expected)
    for name in found:
        helpers.assert_near(found[name][1], expected[name][1].double(), 1e-4)
        different = float((found[name][0] != expected[name][0]).double().mean())
        assert different < 0.02, name  # of sums in another order, a tie or two
    x = _batches(1)[0]
    nearest = quantize_model(model, config, depth=2)
    lost = [float((m.eval()(x) - model.eval()(x)).norm()) for m in (converted, nearest)]
    assert lost[0] < 0.8 * lost[1]


def test_in_place_and_with_a_budget_and_depths() -> None:
    batches = _batches()
    model = _Net()
    quantize_(model, {"head": None, "*": GROUPS}, depth={"first": 4, "*": 2}, calibrate=batches)
    assert (model.first.depth, model.layers[1].q.depth, type(model.head)) == (4, 2, nn.Linear)
    budget = quantize_model(_Net(), bits_per_weight=9, inputs=batches, calibrate=batches)
    depths = {name: budget.get_submodule(name).depth for name in ORDER}
    assert _same(budget, quantize_model(_Net(), depth=depths, calibrate=batches))
    assert not _same(budget, quantize_model(_Net(), depth=depths))


def test_model_that_is_no_chain() -> None:
    model, batches = _Net(), _batches()
    model.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(model.layers)})
    model.forward = lambda x: model.head(model.layers["1"](model.layers["0"](model.first(x))))
    quantize_(model, depth=3, calibrate=batches)
    assert _same(model, quantize_model(_Net(), depth=3, calibrate=batches))


class _Experts(nn.Module):
    """Tokens above zero go to one expert, others to the second; a third is never reached."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert, own in ((0, x[:, 0] > 0), (1, x[:, 0] <= 0)):
            if own.any():
                out[own] = self.experts[expert](x[own])
        return x + out


def test_experts_share_a_pass_and_unreached_layers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    passes, sums = [], calibration.Conversion._sums
    monkeypatch.setattr(
        calibration.Conversion, "_sums", lambda self, stage, run: passes.append(stage) or sums(self, stage, run)
    )
    model, x = nn.Sequential(_Experts(), _Experts()), helpers.randn(60, 8)
    batches = [x, x[x[:, 0] > 0]]  # the second has nothing for one of them
    with pytest.warns(UserWarning, match=r"no batch of calibrate reaches 0\.experts\.2\.0, 0.* rounded to") as caught:
        converted = quantize_model(model, depth=2, calibrate=batches)
    assert caught[0].filename == __file__
    assert passes == [[f"{i}.experts.{e}.{n}" for e in (0, 1)] for i in (0, 1) for n in (0, 2)]
    packed, scale = pack_trit_planes(model[0].experts[2][0].weight, 2)
    assert torch.equal(converted[0].experts[2][0].weight_packed, packed)
    assert torch.equal(converted[0].experts[2][0].scale, scale)


def test_shared_layers_and_tied_weights() -> None:
    torch.manual_seed(0)
    layer, tied = nn.Linear(8, 8), nn.Linear(8, 8)
    tied.weight = layer.weight
    model = nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer, tied))
    seen: list[Tensor] = []
    x = helpers.randn(50, 8)
    converted = quantize_model(model, depth=2, calibrate=[x])
    assert converted[0] is converted[2][0]
    assert converted[0].weight_packed is converted[2][1].weight_packed
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    inputs = torch.cat(seen).detach().double()  # of both of its calls, with dense weights
    q, scale = compensated_integers(layer.weight, inputs.T @ inputs, 2)
    assert torch.equal(converted[0].weight_packed, pack_grid(q, scale, 2)[0])


class _Interrupted(Exception):
    pass


def test_an_ended_conversion_goes_on(tmp_path: Path) -> None:
    model, batches, done = _Net(), _batches(), []

    def until(layers: int, *said: Any) -> None:
        done.append(said[2])
        if said[0] == layers:
            raise _Interrupted

    weights = list(model.parameters())
    for layers in (3, 6):
        how = Calibration(batches, state=tmp_path / "s", progress=lambda *said, n=layers: until(n, *said))
        with pytest.raises(_Interrupted):
            quantize_model(model, depth=2, calibrate=how)
    assert all(one is other for one, other in zip(model.parameters(), weights, strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())
    again = Calibration(batches, state=tmp_path / "s", progress=lambda *said: done.append(said[2]))
    converted = quantize_model(model, depth=2, calibrate=again)
    assert done == [*ORDER[:3], "first", *ORDER[1:6], "first", "layers.0.down", *ORDER[4:]]
    assert _same(converted, quantize_model(model, depth=2, calibrate=batches))
    with pytest.raises(ValueError, match=r"holds another conversion: .*depth .*Name another folder"):
        quantize_model(model, depth=3, calibrate=Calibration(batches, state=tmp_path / "s"))
    with pytest.raises(ValueError, match=r"holds another conversion: batches \d+ there, \d+ asked for"):
        quantize_model(model, depth=2, calibrate=Calibration(batches[1:], state=tmp_path / "s"))


class _Tied(nn.Module):
    """The weight of the head, which is named first, is that of the layer that is called first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.first = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first.weight = self.head.weight
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.first(x)))


def test_a_tied_weight_stays_one_in_a_conversion_that_goes_on(tmp_path: Path) -> None:
    batches = _batches()

    def until_a_block(*said: Any) -> None:
        if said[2] == "layers.0.0":
            raise _Interrupted

    with pytest.raises(_Interrupted):
        quantize_model(_Tied(), depth=2, calibrate=Calibration(batches, state=tmp_path / "s", progress=until_a_block))
    converted = quantize_model(_Tied(), depth=2, calibrate=Calibration(batches, state=tmp_path / "s"))
    assert _same(converted, quantize_model(_Tied(), depth=2, calibrate=batches))


def test_few_tokens_warn_and_nonfinite_ones_raise() -> None:
    with pytest.warns(UserWarning, match=r"few tokens: 6 inputs see fewer than they have columns, such as \S+ 5 for"):
        quantize_model(_Net(), depth=2, calibrate=[helpers.randn(5, 8)])
    model = _Net()
    with pytest.raises(ValueError, match="calibrate brings NaN or Inf to first"):
        quantize_model(model, depth=2, calibrate=[torch.full((20, 8), torch.nan)])
    assert all(type(part.weight) is nn.Parameter for part in model.modules() if isinstance(part, nn.Linear))


def test_autocast_and_bfloat16_models() -> None:
    batches = _batches()
    with torch.autocast("cpu", torch.bfloat16):
        one = quantize_model(_Net(), depth=2, calibrate=batches)
    other = quantize_model(_Net().bfloat16(), depth=2, calibrate=[batch.bfloat16() for batch in batches])
    x = batches[0]
    y = _Net()(x)
    assert float((one(x) - y).norm() / y.norm()) < 0.2
    assert float((other(x.bfloat16()) - y).norm() / y.norm()) < 0.2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"calibrate": []}, ValueError, "calibrate has no batch"),
        ({"calibrate": helpers.randn(2, 8)}, TypeError, "calibrate must be batches, such as .batch. .* got Tensor"),
        ({"calibrate": 5}, TypeError, "calibrate must be batches, .* got int"),
        ({"depth": None, "calibrate": [1]}, ValueError, "it goes with depth or bits_per_weight"),
        ({"config": TernaryQuantConfig(granularity="tensor")}, ValueError, "cannot convert first: .* not tensor"),
        ({"config": TernaryQuantConfig(method="twn")}, ValueError, "cannot convert first: .*method='twn'"),
        ({"config": TernaryQuantConfig(granularity="group", group_size=16)}, ValueError, "first: group_size must"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize_model(_Net(), **{"depth": 2, "calibrate": _batches(1), **arguments})


def test_bad_numbers_and_weights() -> None:
    for how in ({"search": "no"}, {"state": 3}, {"progress": 3}):
        with pytest.raises(TypeError, match=f"{next(iter(how))} must be"):
            Calibration(_batches(1), **how)
    for how in ({"damping": "1"}, {"damping": 0}, {"damping": float("nan")}, {"rounds": -1}, {"rounds": True}):
        with pytest.raises(ValueError, match=f"{next(iter(how))} must be"):
            Calibration(_batches(1), **how)
    model = _Net()
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="cannot convert head: w must be finite"):
        quantize_(model, depth=2, calibrate=_batches(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(model, depth=2, skip="head", calibrate=_batches(1))
    assert isinstance(model.first, bittorch.TernaryLinearInference)
