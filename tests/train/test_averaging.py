"""Averages of weights by torch: `torch.optim.swa_utils` on ternary layers."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig, export_for_inference
from tests import helpers

X, Y = helpers.randn(12, 2, 4, 4), torch.arange(12) % 3


def _model(method: str) -> nn.Module:
    torch.manual_seed(0)
    config = TernaryQuantConfig(method=method)
    return nn.Sequential(
        TernaryConv2d(2, 4, 3, padding=1, config=config), nn.BatchNorm2d(4), nn.Flatten(),
        TernaryLinear(64, 3, config=config),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["max", "lsq", "seq"])
def test_an_exponential_average_is_a_ternary_model(method: str, tmp_path: Path) -> None:
    model = _model(method)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    expected: dict[str, torch.Tensor] = {}
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        for name, tensor in model.state_dict().items():
            now = tensor.detach().double().clone()
            expected[name] = 0.75 * expected[name] + 0.25 * now if name in expected else now
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            helpers.assert_near(tensor, expected[name])
    average.eval()
    y = average(X)
    assert not torch.equal(y, model.eval()(X))
    helpers.assert_same_bits(export_for_inference(average)(X).detach(), y.detach())
    torch.save(average.state_dict(), tmp_path / "a.pt")
    again = AveragedModel(_model(method), use_buffers=True)
    again.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    helpers.assert_same_bits(again.eval()(X).detach(), y.detach())
