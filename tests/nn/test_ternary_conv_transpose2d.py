"""`TernaryConvTranspose2d` and its twin against torch's conv_transpose2d in float64."""

import pytest
import torch
from torch import nn

import bittorch
from bittorch import TernaryConvTranspose2d, TernaryConvTranspose2dInference, TernaryQuantConfig
from tests import helpers
from tests.nn.convolutions import (
    assert_same_bits_everywhere,
    assert_takes_what_torch_takes,
    assert_values_and_gradients,
    in_float64,
)

CONFIGS = {
    "channel": TernaryQuantConfig(),
    "tensor": TernaryQuantConfig(per_channel=False),
    "group": TernaryQuantConfig(granularity="group", group_size=4),
    "int8": TernaryQuantConfig(method="max", activation_bits=8),
    "lsq": TernaryQuantConfig(method="lsq"),
    "clipped": TernaryQuantConfig(ste="clipped"),
}
# Arguments of nn.ConvTranspose2d beside 4 -> 6 channels.
SHAPES = {
    "plain": {"kernel_size": 3},
    "doubles": {"kernel_size": 4, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (2, 3), "stride": (3, 2), "padding": (0, 1), "output_padding": (2, 1), "bias": False},
    "groups": {"kernel_size": (2, 4), "stride": 2, "groups": 2, "dilation": (1, 2)},
    "crops": {"kernel_size": 1, "stride": 2, "padding": 1},
    "wide": {"kernel_size": 2, "dilation": 3, "output_padding": 2},
}
X = helpers.randn(2, 4, 5, 6)


def _layer(shape: str, config: str = "channel", **arguments: object) -> TernaryConvTranspose2d:
    torch.manual_seed(2)
    return TernaryConvTranspose2d(4, 6, **SHAPES[shape], config=CONFIGS[config], **arguments)


def _plain(layer: TernaryConvTranspose2d, shape: str) -> nn.ConvTranspose2d:
    """nn.ConvTranspose2d in float64 with the quantised weight."""
    plain = in_float64(layer, nn.ConvTranspose2d, SHAPES[shape])
    assert isinstance(plain, nn.ConvTranspose2d)
    return plain


def test_layer_is_a_conv_transpose2d_with_its_signature() -> None:
    assert_takes_what_torch_takes(TernaryConvTranspose2d, nn.ConvTranspose2d)
    for shape, arguments in SHAPES.items():
        layer, dense = _layer(shape, quantize=False), nn.ConvTranspose2d(4, 6, **arguments)
        dense.load_state_dict(layer.state_dict())
        assert torch.equal(layer(X), dense(X))


@helpers.each("shape", SHAPES)
@helpers.each("config", ["channel", "tensor"])
def test_values_and_gradients_are_those_of_conv_transpose2d(shape: str, config: str) -> None:
    layer = _layer(shape, config)
    assert_values_and_gradients(layer, _plain(layer, shape), X)


def test_a_scale_belongs_to_an_output_channel() -> None:
    """By hand: absmean of all weights that an output channel meets."""
    layer = _layer("groups")
    w, channel = layer.weight.detach().double(), 4  # the second output of the second group
    row = w[2:, channel - 3].flatten()
    config = TernaryQuantConfig()
    _, scale = bittorch.TernaryQuantizer(config).quantize(row.float()[None])
    codes, scales = layer.get_quantized_weight()
    assert scales.shape == (6,)
    assert scales[channel] == pytest.approx(float(scale), rel=1e-6)
    dense = codes[2:, channel - 3] * scales[channel]
    assert torch.equal(dense, layer.dequantized_weight()[2:, channel - 3])


@helpers.each("shape", SHAPES)
@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_train_eval_and_export_give_the_same_bits(shape: str, config: str, dtype: torch.dtype) -> None:
    assert_same_bits_everywhere(_layer(shape, config, dtype=dtype), TernaryConvTranspose2dInference, X.to(dtype))


def test_first_weights_keep_their_norm_for_each_output_channel() -> None:
    torch.manual_seed(7)
    dense = nn.ConvTranspose2d(8, 6, 3, bias=False)
    torch.manual_seed(7)
    layer = TernaryConvTranspose2d(8, 6, 3, bias=False)
    norms = [w.detach().double().square().sum((0, 2, 3)) for w in (layer.dequantized_weight(), dense.weight)]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)


def test_output_size_completes_the_last_step() -> None:
    layer = _layer("doubles")
    packed, plain = bittorch.export_for_inference(layer), _plain(layer, "doubles")
    for size in ([10, 12], [11, 13], [2, 6, 11, 12]):
        expected = plain(X.double(), size)
        helpers.assert_near(layer(X, size), expected, 1e-6)
        assert torch.equal(packed(X, size), layer(X, size))
    for size in ([12, 12], [9, 12], [10], [1, 10, 12]):
        for module in (layer, packed):
            with pytest.raises(
                ValueError, match=r"output_size must be \(height, width\) from \(10, 12\) to \(11, 13\)"
            ):
                module(X, size)


def test_what_no_layer_can_be_is_refused() -> None:
    for cls in (TernaryConvTranspose2d, TernaryConvTranspose2dInference):
        for output_padding in (2, (0, -1)):
            with pytest.raises(ValueError, match="output_padding must be 0 or more and below stride=2"):
                cls(4, 6, 3, stride=2, output_padding=output_padding)
        with pytest.raises(ValueError, match="stride and dilation must be 1 or more, got 0 and 1"):
            cls(4, 6, 3, stride=0)
        with pytest.raises(ValueError, match='"zeros"'):
            cls(4, 6, 3, padding_mode="reflect")
        with pytest.raises(ValueError, match="padding of a transposed convolution must be integers of 0 or more"):
            cls(4, 6, 3, padding="same")
    with pytest.raises(TypeError, match=r"torch.nn.ConvTranspose2d, got Conv2d"):
        TernaryConvTranspose2d.from_conv_transpose2d(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"the output would be \(-3, -2\): padding=\(5, 5\) crops all"):
        TernaryConvTranspose2d(4, 6, 3, padding=5)(X)
    with pytest.raises(ValueError, match=r"input must be \(samples, 4, height, width\)"):
        _layer("plain")(X[:, :3])


def test_channels_last_is_kept() -> None:
    x = X.to(memory_format=torch.channels_last)
    for layer in (_layer("doubles"), _layer("plain"), _layer("doubles", backend="python")):
        for module in (layer, bittorch.export_for_inference(layer)):
            assert module(x).is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(module(x), module(X))
