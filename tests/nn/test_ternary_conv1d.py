"""`TernaryConv1d` and its twin against torch's conv1d in float64."""

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryConv1d, TernaryConv1dInference, TernaryQuantConfig
from tests import helpers
from tests.nn.convolutions import (
    assert_same_bits_everywhere,
    assert_takes_what_torch_takes,
    assert_values_and_gradients,
    in_float64,
)

CONFIGS = {
    "channel": TernaryQuantConfig(),
    "group": TernaryQuantConfig(granularity="group", group_size=4),
    "int8": TernaryQuantConfig(method="max", activation_bits=8),
    "lsq": TernaryQuantConfig(method="lsq"),
    "clipped": TernaryQuantConfig(ste="clipped"),
}
# Arguments of nn.Conv1d beside 4 -> 6 channels; the kernel's size times the channels of a group is a multiple of 4.
SHAPES = {
    "plain": {"kernel_size": 3},
    "same of an even kernel": {"kernel_size": 4, "padding": "same", "dilation": 3},
    "steps": {"kernel_size": 5, "stride": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 2, "groups": 2, "padding": 1, "bias": False},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "circular": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
}
X = helpers.randn(2, 4, 17)


def _layer(shape: str, config: str = "channel", **arguments: object) -> TernaryConv1d:
    torch.manual_seed(2)
    return TernaryConv1d(4, 6, **SHAPES[shape], config=CONFIGS[config], **arguments)


def _plain(layer: TernaryConv1d, shape: str) -> nn.Conv1d:
    """nn.Conv1d in float64 with the quantised weight."""
    plain = in_float64(layer, nn.Conv1d, SHAPES[shape])
    assert isinstance(plain, nn.Conv1d)
    return plain


def test_layer_is_a_conv1d_with_its_signature() -> None:
    assert_takes_what_torch_takes(TernaryConv1d, nn.Conv1d)
    for shape, arguments in SHAPES.items():
        layer, dense = _layer(shape, quantize=False), nn.Conv1d(4, 6, **arguments)
        dense.load_state_dict(layer.state_dict())
        assert torch.equal(layer(X), dense(X))


@helpers.each("shape", SHAPES)
def test_values_and_gradients_are_those_of_conv1d(shape: str) -> None:
    layer = _layer(shape)
    assert_values_and_gradients(layer, _plain(layer, shape), X)


@helpers.each("shape", SHAPES)
@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_train_eval_and_export_give_the_same_bits(shape: str, config: str, dtype: torch.dtype) -> None:
    assert_same_bits_everywhere(_layer(shape, config, dtype=dtype), TernaryConv1dInference, X.to(dtype))


def test_a_warm_up_blends_the_weight() -> None:
    layer = _layer("steps")
    layer.quant_lambda = 0.25
    plain = _plain(layer, "steps")
    plain.weight = nn.Parameter(layer.weight.detach().double().lerp(plain.weight.detach(), 0.25))
    helpers.assert_near(layer(X), plain(X.double()), 1e-6)


def test_results_are_contiguous_and_padding_follows_the_layer() -> None:
    layer = TernaryConv1d(1, 3, 3)  # one channel: images of either order
    assert layer(helpers.randn(2, 1, 8)).is_contiguous()
    layer = _layer("plain")
    layer.padding, layer.dilation = (2,), (2,)
    dense = nn.Conv1d(4, 6, 3, padding=2, dilation=2).double()
    dense.load_state_dict({"weight": layer.dequantized_weight().double(), "bias": layer.bias.double()})
    helpers.assert_near(layer(X), dense(X.double()), 1e-6)


@pytest.mark.parametrize("x", [X[:, :3], X[0, 0], X[None]], ids=["channels", "one dimension", "four"])
def test_other_inputs_are_refused(x: Tensor) -> None:
    layer = _layer("plain")
    for module in (layer, bittorch.export_for_inference(layer)):
        with pytest.raises(ValueError, match=r"input must be \(samples, 4, length\) or \(4, length\), got"):
            module(x)


def test_what_no_layer_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got group_size=4 and in_features=14"):
        TernaryConv1d(2, 4, 7, config=CONFIGS["group"])
    with pytest.raises(ValueError, match="padding must not be negative, got"):
        TernaryConv1d(2, 4, 3, padding=-1)
    with pytest.raises(ValueError, match="scale_groups=5 do not cut 12 weights"):
        TernaryConv1dInference(4, 6, 3, scale_groups=5)
    for cls in (TernaryConv1d, TernaryConv1dInference):
        with pytest.raises(ValueError, match=r"stride of a 1-d convolution must be .* got \(2, 2\)"):
            cls(2, 4, (3,), (2, 2))
    with pytest.raises(TypeError, match=r"torch.nn.Conv1d, got Conv2d"):
        TernaryConv1d.from_conv1d(nn.Conv2d(4, 4, 1))
