"""Convolutions on a CUDA device: the bits of the CPU where activations are quantised, and near float64 where not."""

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryConv2d, TernaryQuantConfig
from tests import helpers

DEVICE = "cuda"
CONFIGS = {
    "channel": TernaryQuantConfig(),
    "tensor": TernaryQuantConfig(per_channel=False),
    "groups": TernaryQuantConfig(granularity="group", group_size=12),
    "int8": TernaryQuantConfig(activation_bits=8),
    "24 bits": TernaryQuantConfig(activation_bits=24),
}
SHAPES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "steps": {"kernel_size": (3, 4), "stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)},
    "groups": {"kernel_size": (2, 3), "groups": 2, "padding": 1},
}


def _layers(shape: str, config: str) -> tuple[nn.Module, TernaryConv2d, nn.Module]:
    """The exported layer on the CPU, and on the device the layer that trains and what is exported of it."""
    layer = TernaryConv2d(4, 6, **SHAPES[shape], config=CONFIGS[config])
    on_cpu = bittorch.export_for_inference(layer)
    trained = TernaryConv2d(4, 6, **SHAPES[shape], config=CONFIGS[config], device=DEVICE)
    trained.load_state_dict(layer.state_dict())
    return on_cpu, trained, bittorch.export_for_inference(trained)


def _input(dtype: torch.dtype = torch.float32) -> Tensor:
    return helpers.randn(3, 4, 9, 11, dtype=dtype)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_convolutions_are_those_of_the_cpu(shape: str, config: str, dtype: torch.dtype) -> None:
    on_cpu, trained, packed = _layers(shape, config)
    x = _input(dtype)
    with torch.no_grad():
        y, expected = packed(x.to(DEVICE)), on_cpu(x)
        if dtype == torch.float32:
            assert torch.equal(trained.eval()(x.to(DEVICE)), y)
    if CONFIGS[config].activation_bits:
        helpers.assert_same_bits(y.cpu(), expected)
    else:
        helpers.assert_near(y.cpu(), expected.double())


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_are_near_those_of_the_cpu(config: str) -> None:
    layer = TernaryConv2d(4, 6, 3, padding=1, config=CONFIGS[config])
    twin = TernaryConv2d(4, 6, 3, padding=1, config=CONFIGS[config], device=DEVICE)
    twin.load_state_dict(layer.state_dict())
    inputs = _input().requires_grad_(), _input().to(DEVICE).requires_grad_()
    for each, x in zip((layer, twin), inputs, strict=True):
        each(x).square().mean().backward()
    pairs = [
        (inputs[0].grad, inputs[1].grad),
        *((p.grad, q.grad) for p, q in zip(layer.parameters(), twin.parameters(), strict=True)),
    ]
    for cpu, gpu in pairs:
        assert cpu is not None
        assert gpu is not None
        helpers.assert_near(gpu.cpu(), cpu, 5e-3)  # cuDNN may take TF32


@pytest.mark.parametrize("config", CONFIGS)
def test_a_convolution_can_be_captured_in_a_graph(config: str) -> None:
    _, _, packed = _layers("plain", config)
    static = _input().to(DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        packed(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = packed(static)
    static.copy_(torch.randn_like(static))
    graph.replay()
    with torch.no_grad():
        assert torch.equal(y, packed(static))
