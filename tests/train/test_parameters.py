"""What weight decay leaves alone."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.train import parameter_groups
from tests import helpers


def _model() -> nn.Module:
    config = TernaryQuantConfig(method="lsq", group_size=4)
    model = nn.Sequential(TernaryLinear(8, 6, config=config), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[3].weight = model[2].weight
    model[3].bias.requires_grad_(False)
    return model


# FIELD T4
def test_scales_biases_and_norms_are_not_decayed() -> None:
    model = _model()
    decayed, others = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[2].weight)]
    kept = (model[0].bias, model[0].weight_scale, model[1].weight, model[1].bias, model[2].bias)
    assert {id(p) for p in others["params"]} == {id(p) for p in kept}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    optimizer = torch.optim.AdamW([decayed, others], lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    scale, weight = model[0].weight_scale.detach().clone(), model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight_scale, scale)
    helpers.assert_near(model[0].weight, weight.double() * 0.95)


def test_groups_without_parameters_are_left_out() -> None:
    assert [group["weight_decay"] for group in parameter_groups(nn.Linear(2, 2, bias=False))] == [0.01]
    with pytest.raises(ValueError, match=r"weight_decay must be 0 or more, got -0\.1"):
        parameter_groups(nn.Linear(2, 2), -0.1)


@helpers.each("method", ["lsq", "seq", "ttq"])
@helpers.each("granularity", [{"granularity": "tensor"}, {}, {"group_size": 4}], ids=str)
@helpers.each("wrapped", [lambda m: m, lambda m: torch.compile(m, backend="eager"), AveragedModel])
def test_scales_of_every_kind_are_not_decayed(wrapped: Any, granularity: dict[str, Any], method: str) -> None:
    config = TernaryQuantConfig(method=method, **granularity)
    linear, tied = TernaryLinear(8, 6, config=config), TernaryLinear(8, 6, config=config)
    tied.weight, tied.weight_scale = linear.weight, linear.weight_scale
    model = wrapped(nn.ModuleList([TernaryConv2d(4, 6, 2, config=config), linear, tied]))
    layers = [module for module in model.modules() if isinstance(module, TernaryLinear | TernaryConv2d)]
    decayed, others = parameter_groups(model, 0.1)
    assert {id(p) for p in decayed["params"]} == {id(layer.weight) for layer in layers}
    rest = {id(p) for layer in layers for p in (layer.weight_scale, layer.bias)}
    assert {id(p) for p in others["params"]} == rest
    assert len(decayed["params"]) + len(others["params"]) == 2 + len(rest)


def test_flattened_parameters_are_refused() -> None:
    flat = type("FullyShardedDataParallel", (nn.Sequential,), {})(TernaryLinear(8, 6))
    with pytest.raises(TypeError, match=r"flattens matrices, .* before wrapping it with use_orig_params=True"):
        parameter_groups(nn.Sequential(flat))
