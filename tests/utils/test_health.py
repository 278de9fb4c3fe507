"""Export and summary warn, with the names of layers, of what a model cannot be good with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig, export_for_inference, quantize_
from bittorch.utils import conversion_report, summary
from bittorch.utils.health import silent_share
from tests import helpers

REPORTS = (summary, export_for_inference)


def _stale(count: int = 1) -> nn.Sequential:
    """Trained layers whose weights were then exchanged for much smaller ones."""
    torch.manual_seed(0)
    config = TernaryQuantConfig(method="lsq")
    model = nn.Sequential(*(TernaryLinear(16, 16, config=config) for _ in range(count)))
    model(helpers.randn(2, 16))
    for layer in model:
        layer.weight.data *= 0.01
    return model


def _warned(report: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report(model)
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


def test_share_counts_weights_that_are_not_zero() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 4.0, 5.0]])
    codes = torch.tensor([[0, 0, 0, 1], [0, 0, 0, -1]], dtype=torch.int8)
    assert silent_share(codes, weight) == 3 / 5
    assert silent_share(codes, None) == 6 / 8
    assert silent_share(codes, weight * 0) == 0


@pytest.mark.parametrize("report", REPORTS)
def test_layers_with_hardly_a_code_are_named(report: Callable[[nn.Module], Any]) -> None:
    (warning,) = _warned(report, _stale())
    assert warning == (
        "0: 100.0% of its codes are 0: its learned scale does not fit its weights, and reset_scale() of the layer "
        "makes a new one"
    )
    *_, last = _warned(report, _stale(7))
    assert last == "nearly all codes of these layers are 0 too: 5, 6"
    conv = TernaryConv2d(4, 8, 3)
    conv.weight.data[:, 0, 0, 0] = 100.0
    (warning,) = _warned(report, conv)
    assert warning == "the model: 97.2% of its codes are 0: a few weights are far larger than the others"


def test_packed_layer_with_hardly_a_code_is_named() -> None:
    packed = export_for_inference(_stale())
    assert _warned(summary, packed) == ["0: 100.0% of its codes are 0: look at the weights that it was exported from"]


@pytest.mark.parametrize("report", REPORTS)
def test_small_ternary_share_is_named(report: Callable[[nn.Module], Any]) -> None:
    (warning,) = _warned(report, nn.Sequential(TernaryLinear(8, 8), nn.Linear(8, 9)))
    assert warning.startswith("only 44.1% of the weights that multiply activations are ternary; left are Linear, 81 ")
    assert _warned(report, nn.Sequential(TernaryLinear(8, 8), nn.Linear(8, 6))) == []
    chosen = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 9))
    quantize_(chosen, skip="1")
    assert _warned(report, copy.deepcopy(chosen)) == []  # the caller wants it so
    assert _warned(summary, export_for_inference(chosen)) == []
    assert conversion_report(chosen).left[0].reason == "skip names it"
    pruned = TernaryLinear(8, 8)
    pruned.weight.data[1:] = 0
    assert _warned(report, nn.Sequential(pruned, nn.Embedding(50, 8))) == []
