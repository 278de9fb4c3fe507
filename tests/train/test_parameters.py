"""What weight decay leaves alone."""

import pytest
import torch
from torch import nn

from bittorch import TernaryLinear, TernaryQuantConfig
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
