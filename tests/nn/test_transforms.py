"""Layers under torch.fx, torch.func, torch.jit, float64 and channels_last: they work, or say what does."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from bittorch import (
    TernaryConv1d,
    TernaryConv2d,
    TernaryConvTranspose2d,
    TernaryEmbedding,
    TernaryLinear,
    TernaryQuantConfig,
    export_for_inference,
)
from bittorch.nn import TernaryLinearInference
from tests import helpers

CONFIGS = {
    "max": TernaryQuantConfig(method="max"),
    "8 bits": TernaryQuantConfig(activation_bits=8),
    "24 bits, groups": TernaryQuantConfig(granularity="group", group_size=4, activation_bits=24),
    "lsq": TernaryQuantConfig(method="lsq"),
    "seq, 8 bits": TernaryQuantConfig(method="seq", activation_bits=8),
    "ttq": TernaryQuantConfig(method="ttq"),
    "clipped": TernaryQuantConfig(ste="clipped"),
}
PACKED = [name for name in CONFIGS if name != "ttq"]


def _linear(config: str, backend: str = "auto") -> TernaryLinear:
    return TernaryLinear(16, 8, config=CONFIGS[config], backend=backend)


def _conv(config: str, backend: str = "auto", **geometry: object) -> TernaryConv2d:
    return TernaryConv2d(4, 6, 3, config=CONFIGS[config], backend=backend, **{"padding": 1, **geometry})


def _x(kind: str) -> Tensor:
    return helpers.randn(5, 16) if kind == "linear" else helpers.randn(2, 4, 9, 8)


MAKERS = {"linear": _linear, "conv": _conv}
kinds = pytest.mark.parametrize("kind", MAKERS)


# FIELD T12: symbolic tracing met checks as control flow.


def _assert_traces(layer: nn.Module, x: Tensor) -> None:
    model = nn.Sequential(layer, nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    expected = model(x)
    without_dead_code = copy.deepcopy(traced)
    without_dead_code.graph.eliminate_dead_code()
    without_dead_code.recompile()
    for module in (traced, without_dead_code, pickle.loads(pickle.dumps(traced))):
        assert torch.equal(module(x), expected)
    assert dict(traced.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
    with pytest.raises(ValueError, match="must be"):
        without_dead_code(x[:, :-1])


@kinds
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("backend", ["auto", "python"])
@pytest.mark.parametrize("mode", ["train", "eval", "warm-up"])
def test_traced_training_layers_equal_the_layer(kind: str, config: str, backend: str, mode: str) -> None:
    layer = MAKERS[kind](config, backend).train(mode != "eval")
    layer.quant_lambda = 0.5 if mode == "warm-up" else 1.0
    _assert_traces(layer, _x(kind))


@kinds
@pytest.mark.parametrize("config", PACKED)
def test_traced_packed_layers_equal_the_layer(kind: str, config: str) -> None:
    _assert_traces(export_for_inference(MAKERS[kind](config).eval()), _x(kind))


def test_traced_padding_modes_and_planes_equal_the_layer() -> None:
    for geometry in ({"padding": "same"}, {"padding_mode": "reflect"}, {"stride": 2, "dilation": 2, "groups": 2}):
        layer = _conv("max", **geometry)
        _assert_traces(layer, _x("conv"))
        _assert_traces(export_for_inference(layer.eval()), _x("conv"))
    _assert_traces(TernaryLinearInference.from_linear(nn.Linear(16, 8), depth=3), _x("linear"))


def test_other_kinds_trace_and_export() -> None:
    for layer, x in (
        (TernaryConv1d(4, 6, 3, stride=2), helpers.randn(2, 4, 9)),
        (TernaryConvTranspose2d(4, 6, 3, stride=2, config=CONFIGS["lsq"]), _x("conv")),
    ):
        _assert_traces(layer, x)
        packed = export_for_inference(layer.eval())
        _assert_traces(packed, x)
        program = torch.export.export(packed, (x,))
        assert torch.equal(program.module()(x), packed(x))
    indices, table = torch.tensor([[1, 2], [0, 3]]), TernaryEmbedding(5, 8)
    assert torch.equal(torch.fx.symbolic_trace(table)(indices), table(indices))


def test_traced_models_train() -> None:
    layer, x = _linear("max"), _x("linear")
    torch.fx.symbolic_trace(nn.Sequential(layer))(x).sum().backward()
    actual, layer.weight.grad = layer.weight.grad, None
    layer(x).sum().backward()
    assert torch.equal(actual, layer.weight.grad)


# FIELD T11, T20: torch.func, forward mode and second derivatives.


def _loss(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(layer, parameters, (x,)).square().sum()


@kinds
@pytest.mark.parametrize("config", CONFIGS)
def test_python_backend_has_gradients_per_sample(kind: str, config: str) -> None:
    """FIELD T11: the default methods, and the others."""
    layer, x = MAKERS[kind](config, "python"), _x(kind)
    samples = x[:, None]  # a batch of one each
    parameters = dict(layer.named_parameters())
    actual = vmap(grad(lambda p, sample: _loss(layer, p, sample)), (None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        expected = torch.autograd.grad(_loss(layer, parameters, sample), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(actual[name][i], gradient, rtol=1e-4, atol=1e-5)


@kinds
@pytest.mark.parametrize("config", CONFIGS)
def test_kernels_have_gradients_per_sample(kind: str, config: str) -> None:
    """Against backward() of the autograd nodes in C++, sample by sample; the value is that of the kernel."""
    layer, samples = MAKERS[kind](config), _x(kind)[:, None]
    parameters = dict(layer.named_parameters())
    actual = vmap(grad(lambda p, sample: _loss(layer, p, sample)), (None, 0))(parameters, samples)
    values = vmap(lambda sample: functional_call(layer, parameters, (sample,)))(samples)
    for i, sample in enumerate(samples):
        expected = torch.autograd.grad(_loss(layer, parameters, sample), list(parameters.values()))
        if config != "ttq":  # dense, and so a product of torch
            assert torch.equal(values[i], layer(sample))
        for name, gradient in zip(parameters, expected, strict=True):
            helpers.assert_near(actual[name][i], gradient, 1e-5)


def test_other_kinds_have_gradients_per_sample() -> None:
    indices = torch.tensor([[1, 2, 1], [0, 3, 4]])
    for layer, samples in (
        (TernaryConv1d(4, 6, 3), helpers.randn(3, 1, 4, 9)),
        (TernaryConvTranspose2d(4, 6, 3, stride=2), _x("conv")[:, None]),
        (TernaryEmbedding(5, 8), indices),
        (TernaryEmbedding(5, 8, config=CONFIGS["lsq"]), indices),
    ):
        parameters = dict(layer.named_parameters())
        actual = vmap(grad(lambda p, sample, layer=layer: _loss(layer, p, sample)), (None, 0))(parameters, samples)
        for i, sample in enumerate(samples):
            expected = torch.autograd.grad(_loss(layer, parameters, sample), list(parameters.values()))
            for name, gradient in zip(parameters, expected, strict=True):
                helpers.assert_near(actual[name][i], gradient, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of opacus, of its generator and of hooks
def test_opacus_has_gradients_per_sample_and_clips_them() -> None:
    """Gradients per sample against backward(), and a step of DP-SGD without noise against the clipped mean by hand."""
    opacus = pytest.importorskip("opacus")
    model = nn.Sequential(_conv("max", bias=False), nn.ReLU(), nn.Flatten(), TernaryLinear(6 * 9 * 8, 3))
    x, labels, names = _x("conv"), torch.tensor([0, 2]), dict(model.named_parameters()).keys()
    singles = []
    for sample, label in zip(x, labels, strict=True):
        loss = nn.functional.cross_entropy(model(sample[None]), label[None])
        singles.append(torch.autograd.grad(loss, list(model.parameters())))
    norms = [torch.cat([g.flatten() for g in gradients]).norm() for gradients in singles]
    limit = float(min(norms)) / 2
    before = [p.detach().clone() for p in model.parameters()]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=2)
    private, optimizer, _ = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 1.0),
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=limit,
        poisson_sampling=False,
    )
    nn.functional.cross_entropy(private(x), labels).backward()
    for i, parameter in enumerate(model.parameters()):
        helpers.assert_near(parameter.grad_sample, torch.stack([gradients[i] for gradients in singles]), 1e-5)
    optimizer.step()
    for i, (name, parameter) in enumerate(zip(names, model.parameters(), strict=True)):
        clipped = sum(gradients[i] * (limit / norm) for gradients, norm in zip(singles, norms, strict=True)) / 2
        assert helpers.relative_l2(before[i] - parameter.detach(), clipped) < 1e-4, name


@kinds
@pytest.mark.parametrize("config", ["max", "8 bits", "lsq", "clipped"])
def test_other_transforms_of_kernels_are_those_of_the_python_backend(kind: str, config: str) -> None:
    layer, x = MAKERS[kind](config), _x(kind)
    layer(x)  # from the first step in training on a learned scale is kept
    twin = copy.deepcopy(layer)
    twin.backend = "python"
    for transform in (
        lambda module: jacrev(module)(x[:1]),
        lambda module: jvp(module, (x,), (x.flip(0),))[1],
        lambda module: hessian(lambda s: module(s).square().sum())(x[:1]),
        lambda module: vmap(grad(lambda s: module(s).square().sum()))(x[:, None]),
    ):
        helpers.assert_near(transform(layer), transform(twin), 1e-5)


@kinds
def test_a_mapped_layer_in_autocast_has_the_bits_of_the_kernel(kind: str) -> None:
    layer, x = MAKERS[kind]("max"), _x(kind)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = vmap(layer)(x), torch.stack([layer(sample) for sample in x])
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_a_mapped_layer_has_gradients_of_backward() -> None:
    layer, x = _linear("max"), _x("linear").requires_grad_()
    actual = torch.autograd.grad(vmap(layer)(x).square().sum(), [x, layer.weight])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    for a, b in zip(actual, expected, strict=True):
        helpers.assert_near(a, b, 1e-5)


def test_packed_layers_name_the_way_out() -> None:
    layer, x = export_for_inference(_linear("max").eval()), _x("linear")
    with pytest.raises(NotImplementedError, match="backend='python'"):
        grad(lambda s: layer(s).sum())(x)


@kinds
@pytest.mark.parametrize("config", ["max", "8 bits"])
def test_second_derivatives_and_forward_mode_of_the_python_backend(kind: str, config: str) -> None:
    """FIELD T20: what the refusals of the kernels promise."""
    layer, x = MAKERS[kind](config, "python"), _x(kind)[:1]
    _, tangent = jvp(layer, (x,), (x,))
    step = torch.autograd.functional.vjp(layer, x, torch.ones_like(layer(x)))[1]
    helpers.assert_near(tangent.sum(), (step * x).sum(), 1e-4)  # <J x, 1> = <x, J^T 1>
    assert hessian(lambda s: layer(s).square().sum())(x).isfinite().all()
    x.requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad.abs().sum() > 0


@kinds
def test_second_derivatives_of_kernels_name_the_way_out(kind: str) -> None:
    layer, x = MAKERS[kind]("max"), _x(kind).requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='python'"):
        first.square().sum().backward()


# FIELD T19: vmap looped with a warning of torch's, and jit.script spoke of annotations.


@kinds
@pytest.mark.parametrize("config", PACKED)
def test_vmap_is_one_larger_batch(kind: str, config: str, capfd: pytest.CaptureFixture[str]) -> None:
    layer, x = MAKERS[kind](config), _x(kind)
    mapped = torch.stack([x, 2 * x, x.flip(0)], 1)
    for module in (layer, export_for_inference(copy.deepcopy(layer).eval())):
        y = vmap(module, in_dims=1, out_dims=1)(mapped)
        for i in range(3):
            assert torch.equal(y[:, i], module(mapped[:, i]))
    assert "performance drop" not in capfd.readouterr().err


@kinds
@pytest.mark.parametrize("config", ["max", "24 bits, groups"])
def test_vmap_over_weights_is_a_loop(kind: str, config: str) -> None:
    layers = [MAKERS[kind](config) for _ in range(3)]
    with torch.no_grad():
        layers[1].weight.mul_(3)
        layers[2].weight.neg_()
    stacked = {name: torch.stack([dict(m.named_parameters())[name] for m in layers]) for name in ("weight", "bias")}
    x = _x(kind)
    y = vmap(lambda p: functional_call(layers[0], p, (x,)))(stacked)
    for i, layer in enumerate(layers):
        assert torch.equal(y[i], layer(x))


def test_vmap_of_nothing() -> None:
    assert vmap(_linear("max"))(torch.empty(0, 3, 16)).shape == (0, 3, 8)
    assert vmap(_conv("max"))(torch.empty(0, 1, 4, 5, 5)).shape == (0, 1, 6, 5, 5)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("packed", [False, True], ids=["trained", "packed"])
@kinds
def test_jit_script_is_refused_with_the_ways_that_work(kind: str, packed: bool) -> None:
    layer = MAKERS[kind]("max").eval()
    layer = export_for_inference(layer) if packed else layer
    with pytest.raises(NotImplementedError, match=rf"torch.jit.script .* {type(layer).__name__}; use torch.export"):
        torch.jit.script(nn.Sequential(layer))
    x = _x(kind)
    assert torch.equal(torch.jit.trace(layer, x)(x), layer(x))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


# FIELD T16: float64.


@kinds
@pytest.mark.parametrize("config", CONFIGS)
def test_float64_runs_in_plain_torch(kind: str, config: str) -> None:
    layer = MAKERS[kind](config, "python").double()
    single = MAKERS[kind](config, "python")
    single.load_state_dict(layer.state_dict())
    x = _x(kind).double().requires_grad_()
    y = layer(x)
    assert y.dtype == torch.float64
    helpers.assert_near(single(x.float()), y)
    y.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float64
    if config in ("max", "lsq", "clipped", "ttq"):
        assert torch.autograd.gradcheck(layer, (_x(kind)[:1, ...].double().requires_grad_(),), fast_mode=True)


@kinds
@pytest.mark.parametrize("config", ["max", "lsq", "ttq"])
def test_float64_for_kernels_is_refused_where_it_is_asked_for(kind: str, config: str) -> None:
    layer = MAKERS[kind](config)
    with pytest.raises(TypeError, match=r"dtype must be .*, got torch.float64.*cast with .float\(\).*backend='python'"):
        type(layer)(*(16, 8) if kind == "linear" else (4, 6, 3), config=CONFIGS[config], dtype=torch.float64)
    layer.double()
    with pytest.raises(TypeError, match=r"the weight must be .*, got torch.float64.*backend='python'"):
        layer(_x(kind).double())
    dense = nn.Linear(16, 8) if kind == "linear" else nn.Conv2d(4, 6, 3)
    convert = TernaryLinear.from_linear if kind == "linear" else TernaryConv2d.from_conv2d
    with pytest.raises(TypeError, match=r"must be .*, got torch.float64.*cast with .float\(\)"):
        convert(dense.double())
    layer.backend = "python"
    assert layer(_x(kind).double()).dtype == torch.float64


def test_float64_as_the_default_dtype_is_refused() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TypeError, match=r"got torch.float64"):
            TernaryLinear(4, 4)
    finally:
        torch.set_default_dtype(torch.float32)


# FIELD T15: tensor parallelism.


@pytest.fixture
def mesh() -> Iterator[object]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@kinds
@pytest.mark.parametrize("packed", [False, True], ids=["trained", "packed"])
@pytest.mark.parametrize("sharded", ["weight", "input"])
def test_distributed_tensors_are_refused_with_a_way_out(kind: str, packed: bool, sharded: str, mesh: object) -> None:
    layer, x = MAKERS[kind]("max").eval(), _x(kind)
    layer = export_for_inference(layer) if packed else layer
    if sharded == "weight":
        distribute_module(layer, mesh)
    x = distribute_tensor(x, mesh, [Replicate()])
    with pytest.raises(NotImplementedError, match="do not take a DTensor"):
        layer(x)


# FIELD T17: channels_last.


def _formats(y: Tensor) -> tuple[bool, bool]:
    return y.is_contiguous(), y.is_contiguous(memory_format=torch.channels_last)


@helpers.each("config", CONFIGS)
@helpers.each("backend", ["auto", "python"])
@helpers.each("mode", ["train", "eval", "warm-up"])
def test_convolutions_keep_the_memory_format(config: str, backend: str, mode: str) -> None:
    layer, x = _conv(config, backend).train(mode != "eval"), _x("conv")
    layer.quant_lambda = 0.5 if mode == "warm-up" else 1.0
    last = x.to(memory_format=torch.channels_last)
    assert _formats(layer(x)) == (True, False)
    assert _formats(layer(last)) == (False, True) == _formats(nn.Conv2d(4, 6, 3)(last))
    helpers.assert_near(layer(last), layer(x), 1e-6)
    if backend == "auto" and mode != "warm-up" and config != "ttq":
        assert torch.equal(layer(last), layer(x))


@pytest.mark.parametrize("config", PACKED)
def test_packed_convolutions_keep_the_memory_format(config: str) -> None:
    layer, x = export_for_inference(_conv(config).eval()), _x("conv")
    last = x.to(memory_format=torch.channels_last)
    assert (_formats(layer(x)), _formats(layer(last))) == ((True, False), (False, True))
    assert torch.equal(layer(last), layer(x))


@helpers.each("shape", [(1, 4, 9, 8), (3, 4, 1, 1), (1, 4, 1, 8), (0, 4, 5, 5), (3, 1, 5, 5), (1, 1, 1, 1)])
@helpers.each("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_fakes_have_the_strides_of_results(shape: tuple[int, ...], layout: str) -> None:
    x = torch.ones(shape)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.ones(shape[0], shape[1] + 3, shape[2], shape[3]).to(memory_format=torch.channels_last)[:, : shape[1]]
    elif layout == "expanded":
        x = torch.ones(1, 1, 1, shape[3]).expand(shape)
    layer = TernaryConv2d(shape[1], 6, 1)
    y = layer(x)
    assert layer.to("meta")(x.to("meta")).stride() == y.stride()


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["trained", "packed"])
def test_compiled_convolutions_keep_the_memory_format(packed: bool) -> None:
    layer = nn.Sequential(_conv("max"), nn.ReLU())
    layer = export_for_inference(layer.eval()) if packed else layer
    last = _x("conv").to(memory_format=torch.channels_last)
    for backend in ("aot_eager", "inductor"):
        torch.compiler.reset()
        y = torch.compile(layer, backend=backend, fullgraph=True)(last)
        assert _formats(y) == (False, True)
        assert torch.equal(y, layer(last))
