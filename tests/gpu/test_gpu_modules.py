"""Modules on a CUDA device: training and exported layers agree bit for bit; streams, graphs and autocast work.

Under compute-sanitizer; the environment lets it see where a tensor ends:
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m pytest -q -x -k "not graph" \\
        tests/gpu/test_gpu_modules.py
"""

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryQuantConfig

DEVICE = "cuda"
CONFIGS = (
    TernaryQuantConfig(),
    TernaryQuantConfig(per_channel=False, method="absmean"),
    TernaryQuantConfig(granularity="group", group_size=16, method="optimal"),
    TernaryQuantConfig(granularity="group", group_size=64, activation_bits=8),
    TernaryQuantConfig(activation_bits=8),
    TernaryQuantConfig(activation_bits=16),
    TernaryQuantConfig(granularity="group", group_size=16, activation_bits=24),
    TernaryQuantConfig(granularity="group", group_size=16, activation_bits=8, method="twn"),
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer(config: TernaryQuantConfig, dtype: torch.dtype = torch.float32) -> bittorch.TernaryLinear:
    return bittorch.TernaryLinear(128, 70, config=config, device=DEVICE, dtype=dtype)


def exported(config: TernaryQuantConfig) -> tuple[nn.Module, Tensor]:
    return bittorch.export_for_inference(layer(config)), torch.randn(5, 128, device=DEVICE)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_export_gives_the_same_bits(config: TernaryQuantConfig, dtype: torch.dtype) -> None:
    model = nn.Sequential(layer(config, dtype), nn.ReLU())
    packed = bittorch.export_for_inference(model)
    for shape in ((128,), (1, 128), (16, 128), (33, 128), (2, 3, 128), (0, 128), (100, 128), (1200, 128)):
        x = torch.randn(shape, device=DEVICE, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(model.eval()(x), packed(x))


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_the_activations_alone(config: TernaryQuantConfig, dtype: torch.dtype) -> None:
    model = layer(config).eval()
    packed = bittorch.export_for_inference(model)
    x = torch.randn(7, 128, device=DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=dtype):
        y = packed(x)
        assert torch.equal(model(x), y)
    assert y.dtype == dtype
    assert packed.scale.dtype == torch.float32
    assert torch.equal(packed(x.to(dtype)), y)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_gradients_reach_weight_and_input(config: TernaryQuantConfig) -> None:
    model = layer(config)
    x = torch.randn(5, 128, device=DEVICE, requires_grad=True)
    model(x).square().mean().backward()
    for gradient in (x.grad, model.weight.grad, model.bias.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_kernels_run_on_the_current_stream(config: TernaryQuantConfig) -> None:
    packed, x = exported(config)
    expected = packed(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)  # on another stream the kernels would read the zeros
        late.copy_(x)
        y = packed(late)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("tokens", [5, 40, 100])
def test_forward_can_be_captured_in_a_graph(config: TernaryQuantConfig, tokens: int) -> None:
    training = layer(config).eval()
    for model in (bittorch.export_for_inference(training), training):
        static = torch.randn(tokens, 128, device=DEVICE)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            model(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            y = model(static)
        for _ in range(3):
            static.copy_(torch.randn_like(static))
            graph.replay()
            with torch.no_grad():
                assert torch.equal(y, model(static))


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("tokens", [5, 100])
def test_a_training_step_can_be_captured_in_a_graph(config: TernaryQuantConfig, tokens: int) -> None:
    """The quantiser and the gradients need no answer from the device."""
    model = layer(config)
    x = torch.randn(tokens, 128, device=DEVICE, requires_grad=True)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(x).square().sum().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    replayed = model.weight.grad.clone()
    step()
    assert torch.equal(replayed, model.weight.grad)


def test_saved_for_backward_are_codes_not_a_dense_weight() -> None:
    model = bittorch.TernaryLinear(4096, 4096, bias=False, device=DEVICE, dtype=torch.bfloat16)
    sizes = []

    def note(t: Tensor) -> Tensor:
        sizes.append(t.numel() * t.element_size())
        return t

    x = torch.randn(2, 4096, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(x)
    assert sum(sizes) < 4096 * 4096 // 4 + 4096 * 4 + 3 * x.numel() * 2
