"""What tests of convolutions that are no 2-d ones share: layers of 4 to 6 channels beside those of torch."""

import inspect

import torch
from torch import Tensor, nn

import bittorch
from bittorch.nn import PackedLayer
from bittorch.nn.ternary_conv2d import TernaryConvolution
from tests import helpers


def in_float64(layer: TernaryConvolution, kind: type[nn.Module], arguments: dict[str, object]) -> nn.Module:
    """torch's layer with the quantised weight."""
    plain = kind(4, 6, **arguments).double()
    plain.weight = nn.Parameter(layer.dequantized_weight().double())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().double())
    return plain


def assert_takes_what_torch_takes(cls: type[TernaryConvolution], kind: type[nn.Module]) -> None:
    ours, theirs = (list(inspect.signature(c).parameters) for c in (cls, kind))
    positional = theirs.index("device")
    assert issubclass(cls, kind)
    assert ours[:positional] == theirs[:positional]
    assert set(theirs) <= set(ours)


def assert_values_and_gradients(layer: TernaryConvolution, plain: nn.Module, x: Tensor) -> None:
    x, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(x), plain(wide)
    helpers.assert_near(y, expected, 1e-6)
    assert torch.equal(layer(x[0]), y[0])
    g = helpers.randn(*y.shape, seed=9)
    y.backward(g)
    expected.backward(g.double())
    helpers.assert_near(x.grad, wide.grad)
    helpers.assert_near(layer.weight.grad, plain.weight.grad)


def assert_same_bits_everywhere(layer: TernaryConvolution, twin: type[PackedLayer], x: Tensor) -> None:
    """In training, in ``eval()`` and packed."""
    packed = bittorch.export_for_inference(layer)
    trained = layer(x)
    assert isinstance(packed, twin)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), trained)
        assert torch.equal(packed(x), trained)
        assert torch.equal(packed(x[1]), trained[1])
    assert trained.dtype == x.dtype
    assert packed.weight.shape == layer.weight.shape
