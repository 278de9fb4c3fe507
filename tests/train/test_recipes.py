"""Recipes against a loop by hand, and against checkpoints of other recipes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryLinear, TernaryQuantConfig
from bittorch.train import parameter_groups, recipes
from tests import helpers

X, Y = helpers.randn(16, 8), torch.arange(16) % 3
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "clip": 0.1, "quant_warmup": 0.25, "lr_end": 0.1, "warmup": 0.2}


def _model(**config: object) -> nn.Module:
    torch.manual_seed(0)
    made = TernaryQuantConfig(**{"method": "lsq", **config})
    return nn.Sequential(TernaryLinear(8, 16, config=made), nn.ReLU(), TernaryLinear(16, 3, config=made))


def _train(model: nn.Module, recipe: recipes.Recipe, steps: int) -> list[Tensor]:
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        recipe.step()
        losses.append(loss.detach())
    return losses


def test_steps_are_those_of_a_loop_by_hand() -> None:
    model, twin = _model(), _model()
    recipe = recipes.from_scratch(model, 20, **OPTIONS)
    losses = _train(model, recipe, 20)
    optimizer = torch.optim.AdamW(parameter_groups(twin, 0.1), lr=1.0)
    for i in range(20):
        rise, fall = (i + 1) / 4, 0.1 + 0.9 * (1 + math.cos(math.pi * (i - 4) / 16)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (rise if i < 4 else fall)
        optimizer.param_groups[0]["weight_decay"] = 0.1 if i < 10 else 0.0
        for layer in (twin[0], twin[2]):
            layer.quant_lambda = min(1.0, i / 5)
        loss = nn.functional.cross_entropy(twin(X), Y)
        assert loss == losses[i]
        loss.backward()
        assert nn.utils.clip_grad_norm_(twin.parameters(), 0.1) > 0.1
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert math.isclose(recipe.optimizer.param_groups[0]["lr"], 1e-3)


def test_from_fp32_lets_the_share_of_quantisation_rise() -> None:
    model = _model()
    recipe = recipes.from_fp32(model, 8, lr=1e-3)
    assert (model[0].quant_lambda, recipe.settings["lr"]) == (0, 1e-3)
    _train(model, recipe, 2)
    assert model[0].quant_lambda == 1


def test_training_goes_on_from_a_file_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = _model(), _model(), _model(method="lsq")
    expected = _train(whole, recipes.from_scratch(whole, 12, **OPTIONS), 12)
    recipe = recipes.from_scratch(first, 12, **OPTIONS)
    losses = _train(first, recipe, 7)
    parts = {"recipe": recipe, "model": first, "optimizer": recipe.optimizer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "a.pt")
    again = recipes.from_scratch(second, 12, **OPTIONS)
    states = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, part in {"recipe": again, "model": second, "optimizer": again.optimizer}.items():
        part.load_state_dict(states[name])
    assert losses + _train(second, again, 5) == expected


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"method": "seq"}, {}, "layer 0: .*method is 'seq' here and 'lsq' in the checkpoint"),
        ({"activation_bits": 8}, {}, "layer 0: activation_bits is 8 here and None in the checkpoint"),
        ({}, {"lr": 5e-3}, "recipe: lr is 0.005 here and 0.01 in the checkpoint"),
        ({}, {"steps": 24}, "recipe: steps is 24 here and 12 in the checkpoint"),
    ],
    ids=str,
)
def test_another_configuration_is_refused_with_both_values(
    config: dict[str, object], options: dict[str, float], message: str
) -> None:
    model = _model()
    recipe = recipes.from_scratch(model, 12, **OPTIONS)
    _train(model, recipe, 2)
    other = recipes.from_scratch(_model(**config), **{"steps": 12, **OPTIONS, **options})
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(recipe.state_dict())
    assert other.lr_schedule.last_epoch == 0


def test_other_layers_are_refused_by_name() -> None:
    saved = recipes.from_scratch(_model(), 12).state_dict()
    model = nn.Sequential(_model()[0], nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="has 2 ternary layers, this model 1; only there: 2; only here: none"):
        recipes.from_scratch(model, 12).load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup": 100}, "warmup is a share and must be from 0 to 1, got 100"),
        ({"lr": 0.0}, "lr must be above 0 and clip at least 0, got lr=0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
    ],
    ids=str,
)
def test_bad_settings_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.from_scratch(_model(), **{"steps": 10, **options})
