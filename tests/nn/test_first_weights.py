"""First weights: torch's, stretched so that what the layer multiplies by has their norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from tests import helpers

METHODS = ("max", "twn", "absmean", "absmedian", "optimal", "nm34", "lsq", "seq", "ttq")
EXTENTS: dict[str, dict[str, Any]] = {
    "tensor": {"granularity": "tensor"},
    "row": {},
    "group": {"group_size": 16},
}


def _pair(kind: str, seed: int = 3, **config: Any) -> tuple[Any, Tensor]:
    """A ternary layer, and the weight that torch draws for the dense one."""
    ternary, dense, sizes = (
        (TernaryLinear, nn.Linear, (64, 10)) if kind == "linear" else (TernaryConv2d, nn.Conv2d, (16, 10, 2))
    )
    torch.manual_seed(seed)
    layer = ternary(*sizes, config=TernaryQuantConfig(**config))
    torch.manual_seed(seed)
    return layer, dense(*sizes).weight.detach().double()


def _norms(weight: Tensor, extent: str) -> Tensor:
    """In float64, of the weights that share a scale."""
    shape = {"tensor": (1, -1), "row": (10, -1), "group": (40, 16)}[extent]
    return weight.double().reshape(shape).square().sum(1).sqrt()


@helpers.each("kind", ["linear", "convolution"])
@helpers.each("extent", EXTENTS)
@helpers.each("method", METHODS)
def test_quantised_weight_has_the_norm_that_torch_draws(method: str, extent: str, kind: str) -> None:
    layer, drawn = _pair(kind, method=method, **EXTENTS[extent])
    helpers.assert_near(_norms(layer.dequantized_weight(), extent), _norms(drawn, extent), 1e-5)
    direction = nn.functional.normalize(layer.weight.detach().double().view(len(_norms(drawn, extent)), -1))
    helpers.assert_near(direction, nn.functional.normalize(drawn.view(direction.shape)), 1e-5)


@pytest.mark.parametrize("scale", ["ls", "mean", "max"])
def test_every_scale_rule_is_made_up_for(scale: str) -> None:
    layer, drawn = _pair("linear", method="max", scale=scale)
    helpers.assert_near(_norms(layer.dequantized_weight(), "row"), _norms(drawn, "row"), 1e-5)


def test_drawing_again_stretches_once_again() -> None:
    layer, _ = _pair("linear", method="lsq")
    torch.manual_seed(8)
    layer.reset_parameters()
    _, drawn = _pair("linear", seed=8)
    helpers.assert_near(_norms(layer.dequantized_weight(), "row"), _norms(drawn, "row"), 1e-5)
    assert layer.state_dict()["weight_scale"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=helpers.dtype_id)
def test_half_precision_masters(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    layer = TernaryLinear(64, 10, dtype=dtype)
    torch.manual_seed(3)
    drawn = nn.Linear(64, 10, dtype=dtype).weight.detach()
    assert torch.allclose(_norms(layer.dequantized_weight(), "row"), _norms(drawn, "row"), rtol=5e-3)


def test_layers_without_anything_to_stretch() -> None:
    torch.manual_seed(3)
    dense = TernaryLinear(64, 10, quantize=False)
    assert torch.equal(dense.weight.detach().double(), _pair("linear")[1])
    for shape in ((0, 4), (4, 0)):
        assert TernaryLinear(*shape).weight.numel() == 0
    with torch.device("meta"):
        layer = TernaryLinear(64, 10)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.weight.isfinite().all()
