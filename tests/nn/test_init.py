"""First weights that somebody else drew."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinear, TernaryQuantConfig, quantize_model
from bittorch.nn.init import norm_preserving_
from tests import helpers


def _norm(weight: Tensor) -> Tensor:
    return weight.detach().double().square().sum(1).sqrt()


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize("method", ["max", "twn", "lsq", "ttq"])
def test_converted_model_that_was_never_trained(method: str) -> None:
    dense = _net()
    model = quantize_model(dense, TernaryQuantConfig(method=method))
    assert norm_preserving_(model) is model
    for ternary, plain in ((model[0], dense[0]), (model[2], dense[2])):
        assert (_norm(ternary.weight) / _norm(plain.weight) - 1).abs().max() > 0.01
        helpers.assert_near(_norm(ternary.dequantized_weight()), _norm(plain.weight), 1e-5)


@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nn.Module.half]
)
def test_weights_are_stretched_once(copied: Any) -> None:
    torch.manual_seed(1)
    made = nn.Sequential(
        TernaryLinear(48, 32), nn.ReLU(), TernaryLinear(32, 8, config=TernaryQuantConfig(method="lsq"))
    )
    converted = norm_preserving_(quantize_model(_net(), TernaryQuantConfig(granularity="tensor")))
    for model in map(copied, (made, converted)):
        before = [p.detach().clone() for p in model.parameters()]
        norm_preserving_(model)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_weights_that_are_drawn_again_are_stretched_again() -> None:
    layer = TernaryLinear(48, 32, config=TernaryQuantConfig(method="lsq"))
    nn.init.kaiming_normal_(layer.weight)
    drawn = _norm(layer.weight)
    norm_preserving_(layer)
    helpers.assert_near(_norm(layer.dequantized_weight()), drawn, 1e-5)


def test_shared_weights() -> None:
    model = nn.Sequential(nn.Embedding(10, 48), TernaryLinear(48, 32), TernaryLinear(48, 32), TernaryLinear(48, 10))
    model[3].weight = model[0].weight
    model[2].weight = model[1].weight
    nn.init.normal_(model[1].weight)
    table, drawn = model[0].weight.detach().clone(), _norm(model[1].weight)
    norm_preserving_(model)
    assert torch.equal(model[0].weight, table)
    helpers.assert_near(_norm(model[2].dequantized_weight()), drawn, 1e-5)


def test_what_is_left_alone() -> None:
    model = nn.Sequential(TernaryLinear(48, 32, quantize=False), nn.Linear(32, 32), TernaryLinear(32, 8))
    nn.utils.parametrizations.orthogonal(model[2])
    state = copy.deepcopy(model.state_dict())
    norm_preserving_(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.device("meta"):
        norm_preserving_(nn.Sequential(TernaryLinear(48, 32)))
    zero = nn.Linear(4, 3)
    zero.weight.data[1:].zero_()
    layer = norm_preserving_(TernaryLinear.from_linear(zero))
    assert torch.equal(layer.weight[1:], torch.zeros(2, 4))


def test_weights_that_are_no_first_ones_are_refused() -> None:
    layer = TernaryLinear(48, 32, config=TernaryQuantConfig(method="lsq"))
    layer(helpers.randn(2, 48))
    with pytest.raises(ValueError, match=r"the scale of 0 was trained or loaded, .* reset_scale\(\)"):
        norm_preserving_(nn.Sequential(layer))
    layer.reset_scale()
    loaded = TernaryLinear(48, 32, config=TernaryQuantConfig(method="lsq"), device="meta")
    loaded.weight = nn.Parameter(helpers.randn(32, 48))
    loaded.weight_scale = nn.Parameter(torch.full(loaded.weight_scale.shape, 0.5))
    with pytest.raises(ValueError, match=r"the scale of the layer was trained or loaded, .* reset_scale\(\)"):
        norm_preserving_(loaded)
    layer.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match="the weight of the layer must be finite, got NaN or Inf"):
        bittorch.nn.init.norm_preserving_(layer)
