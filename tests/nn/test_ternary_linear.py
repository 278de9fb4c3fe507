import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import linear

import bittorch
from bittorch import _C, TernaryLinear, TernaryQuantConfig
from tests import helpers

CONFIGS = {
    "default": TernaryQuantConfig(),
    "tensor": TernaryQuantConfig(per_channel=False),
    "group": TernaryQuantConfig(granularity="group", group_size=8),
    "absmean": TernaryQuantConfig(method="absmean"),
    "optimal": TernaryQuantConfig(method="optimal"),
    "rms": TernaryQuantConfig(method="twn", scale="rms"),
    "a8": TernaryQuantConfig(activation_bits=8),
    "a16": TernaryQuantConfig(activation_bits=16),
    "a24": TernaryQuantConfig(activation_bits=24),
    "group a8": TernaryQuantConfig(method="max", granularity="group", group_size=8, activation_bits=8),
}


def _layer(config: str = "default", **arguments: object) -> TernaryLinear:
    torch.manual_seed(3)
    return TernaryLinear(64, 10, config=CONFIGS[config], **arguments)


def test_layer_is_a_linear_with_the_promised_signature() -> None:
    assert issubclass(TernaryLinear, nn.Linear)
    signature = inspect.signature(TernaryLinear)
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = ["in_features", "out_features", "bias", "threshold_factor", "per_channel", "quantize", "backend"]
    assert positional == expected
    layer = TernaryLinear(4, 3, True, 0.1, False, True, "auto")
    assert layer.config == TernaryQuantConfig(0.1, per_channel=False)


def test_layer_initialises_as_linear() -> None:
    torch.manual_seed(5)
    dense = TernaryLinear(7, 3, quantize=False)
    torch.manual_seed(5)
    layer = TernaryLinear(7, 3)
    torch.manual_seed(5)
    plain = nn.Linear(7, 3)
    assert torch.equal(dense.weight, plain.weight)
    assert torch.equal(layer.get_quantized_weight()[0], TernaryLinear.from_linear(plain).get_quantized_weight()[0])
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_has_the_keys_of_linear(bias: bool) -> None:
    layer = TernaryLinear(7, 3, bias)
    assert list(layer.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    plain = nn.Linear(7, 3, bias)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)


@helpers.each("config", CONFIGS)
@helpers.each("shape", [(64,), (5, 64), (2, 3, 64), (0, 64)], ids=str)
def test_forward_is_near_the_quantized_weight(config: str, shape: tuple[int, ...]) -> None:
    layer, x = _layer(config), helpers.randn(*shape)
    exact = linear(x.double(), layer.dequantized_weight().double(), layer.bias.double())
    helpers.assert_near(layer(x), exact, 0.02 if layer.config.activation_bits else 1e-5)


@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_train_and_eval_give_the_same_bits(config: str, dtype: torch.dtype) -> None:
    layer, x = _layer(config, dtype=dtype), helpers.randn(5, 64, dtype=dtype)
    trained = layer.train()(x)
    assert torch.equal(trained, layer.eval()(x))
    with torch.no_grad():
        assert torch.equal(trained, layer(x))
    with torch.inference_mode():
        assert torch.equal(trained, layer(x))


@helpers.each("config", CONFIGS)
@helpers.each("bias", [True, False], ids=["bias", "no bias"])
def test_backend_python_agrees_in_value_and_gradient(config: str, bias: bool) -> None:
    layer, slow = _layer(config, bias=bias), _layer(config, bias=bias, backend="python")
    x, x_slow = (helpers.randn(5, 64).requires_grad_() for _ in range(2))
    y, y_slow = layer(x), slow(x_slow)
    helpers.assert_near(y, y_slow.double())
    g = helpers.randn(5, 10, seed=4)
    y.backward(g)
    y_slow.backward(g)
    helpers.assert_near(x.grad, x_slow.grad.double())
    for fast, reference in zip(layer.parameters(), slow.parameters(), strict=True):
        helpers.assert_near(fast.grad, reference.grad.double())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_backend_cuda_raises_without_cuda() -> None:
    with pytest.raises(RuntimeError, match="backend='cuda', but"):
        TernaryLinear(4, 3, backend="cuda")
    layer = TernaryLinear(4, 3)
    layer.backend = "cuda"
    with pytest.raises(RuntimeError, match="backend='cuda', but the input is on cpu"):
        layer(torch.zeros(1, 4))


def test_unknown_backend_raises() -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'cuda', 'python', got 'tpu'"):
        TernaryLinear(4, 3, backend="tpu")


def test_quantize_false_is_linear() -> None:
    layer, x = TernaryLinear(64, 10, quantize=False), helpers.randn(5, 64)
    assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.dequantized_weight(), layer.weight)
    assert layer.dequantized_weight().data_ptr() != layer.weight.data_ptr()
    layer.quantize = True
    assert not torch.equal(layer(x), linear(x, layer.weight, layer.bias))


@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_dequantized_weight_is_codes_times_scale(config: str, dtype: torch.dtype) -> None:
    layer = _layer(config, dtype=dtype)
    weight = layer.dequantized_weight()
    codes, scale = bittorch.TernaryQuantizer(layer.config).quantize(layer.weight)
    assert weight.dtype == dtype
    assert not weight.requires_grad
    assert torch.equal(weight, helpers.dense(codes, scale).float().to(dtype))


@helpers.each("config", CONFIGS)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_get_quantized_weight_is_codes_and_scale(config: str, dtype: torch.dtype) -> None:
    layer = _layer(config, dtype=dtype)
    w_tern, scale = layer.get_quantized_weight()
    assert (w_tern.dtype, w_tern.shape, scale.dtype) == (dtype, layer.weight.shape, torch.float32)
    assert not w_tern.requires_grad
    assert not scale.requires_grad
    codes, expected = bittorch.ternary_quantize(layer.weight, **_fields(layer.config))
    assert torch.equal(w_tern, codes.to(dtype))
    assert torch.equal(scale, expected)
    assert torch.equal(helpers.dense(w_tern, scale).float().to(dtype), layer.dequantized_weight())
    layer.quantize = False  # the codes are then those that the layer would have
    assert torch.equal(layer.get_quantized_weight()[0], w_tern)


def _fields(config: TernaryQuantConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ("method", "scale", "granularity", "group_size")}


def test_dequantized_weight_refuses_nan() -> None:
    layer = TernaryLinear(4, 3)
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    with pytest.raises(ValueError, match="1 NaN or Inf of 12 values, the first in row 1"):
        layer.dequantized_weight()
    with pytest.raises(ValueError, match="1 NaN or Inf of 12 values, the first in row 1"):
        layer.get_quantized_weight()
    assert layer(torch.ones(4)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_from_linear_shares_parameters_and_mode(bias: bool) -> None:
    plain = nn.Linear(64, 10, bias, dtype=torch.bfloat16).eval()
    layer = TernaryLinear.from_linear(plain, CONFIGS["group"])
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert not layer.training
    assert layer.config is CONFIGS["group"]
    assert (layer.in_features, layer.out_features) == (64, 10)
    assert layer(helpers.randn(2, 64, dtype=torch.bfloat16)).shape == (2, 10)


def test_from_linear_checks_groups() -> None:
    with pytest.raises(ValueError, match="group_size=8 and in_features=12"):
        TernaryLinear.from_linear(nn.Linear(12, 3), CONFIGS["group"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold_factor": 0.1}, "fields of config"),
        ({"per_channel": False}, "fields of config"),
    ],
    ids=str,
)
def test_config_and_its_fields_conflict(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryLinear(64, 10, config=TernaryQuantConfig(), **arguments)


def test_activation_bits_beside_config() -> None:
    assert TernaryLinear(8, 4, config=CONFIGS["default"], activation_bits=8).config.activation_bits == 8
    assert TernaryLinear(8, 4, config=CONFIGS["a8"], activation_bits=8).config == CONFIGS["a8"]
    assert TernaryLinear(8, 4, activation_bits=8).config.activation_bits == 8
    with pytest.raises(ValueError, match="activation_bits must be one of None, 8, 16, 24, got 4"):
        TernaryLinear(8, 4, activation_bits=4)


def test_groups_that_do_not_divide_raise_at_construction() -> None:
    with pytest.raises(ValueError, match="group_size=8 and in_features=12"):
        TernaryLinear(12, 4, config=CONFIGS["group"])


@pytest.mark.parametrize("config", CONFIGS)
def test_copies_and_pickles_give_the_same_bits(config: str) -> None:
    layer, x = _layer(config), helpers.randn(3, 64)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        assert twin.config == layer.config
        assert twin.weight is not layer.weight


def test_state_dict_survives_weights_only_load() -> None:
    layer, buffer = _layer(), io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = TernaryLinear(64, 10)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(torch.ones(64)), layer(torch.ones(64)))


def test_layer_on_meta_gives_shapes() -> None:
    layer = TernaryLinear(64, 10, device="meta", dtype=torch.bfloat16)
    y = layer(torch.zeros(2, 3, 64, dtype=torch.bfloat16, device="meta"))
    assert (y.shape, y.dtype) == ((2, 3, 10), torch.bfloat16)


def test_repr_says_how_it_quantises() -> None:
    text = repr(_layer("group a8", backend="python", quantize=False))
    for part in (
        "in_features=64",
        "method=max",
        "scale=ls",
        "threshold_factor=0.05",
        "granularity=group(8)",
        "activation_bits=8",
        "quantize=False",
        "backend=python",
    ):
        assert part in text


@pytest.mark.parametrize("config", ["default", "a8"])
def test_nothing_of_the_size_of_the_weight_is_saved(config: str) -> None:
    layer, saved = TernaryLinear(512, 256, config=CONFIGS[config]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.zeros(2, 512))
    assert sum(t.numel() * t.element_size() for t in saved) < 256 * 512 // 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_autocast_output_and_gradients(dtype: torch.dtype) -> None:
    layer, x = _layer(), helpers.randn(3, 64)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    helpers.assert_near(layer.weight.grad, x.to(dtype).double().sum(0).expand(10, 64), 1e-2)


def test_mixed_dtypes_without_autocast_raise() -> None:
    with pytest.raises(RuntimeError, match=r"same dtype, got torch.bfloat16 and torch.float32"):
        _layer()(helpers.randn(3, 64).bfloat16())


@pytest.mark.parametrize("width", [63, 65, 61, 128])
@pytest.mark.parametrize("backend", ["auto", "python"])
def test_input_of_another_width_raises(width: int, backend: str) -> None:
    layer = TernaryLinear(62, 10, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=f"{width}"):
        layer(torch.zeros(2, width))


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_checkpointing_gives_the_same_gradients(config: str) -> None:
    layer, x = _layer(config), helpers.randn(5, 64).requires_grad_()
    layer(x).square().sum().backward()
    expected = [x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    for actual, wanted in zip([x.grad, *(p.grad for p in layer.parameters())], expected, strict=True):
        assert torch.equal(actual, wanted)


def _compiled_and_eager(config: str, backend: str, training: bool, x: Tensor) -> None:
    torch._dynamo.reset()
    eager = _layer(config).train(training)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    for rows in (x, x[:3]):
        inputs = [rows.clone().requires_grad_(training) for _ in range(2)]
        with torch.set_grad_enabled(training):
            y, expected = run(inputs[0]), eager(inputs[1])
        assert torch.equal(y, expected)
        if training:
            y.square().sum().backward()
            expected.square().sum().backward()
            helpers.assert_near(inputs[0].grad, inputs[1].grad.double())
            for a, b in zip(compiled.parameters(), eager.parameters(), strict=True):
                helpers.assert_near(a.grad, b.grad.double())


@pytest.mark.parametrize("config", ["default", "group a8"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_traced_layer_equals_eager(config: str, training: bool) -> None:
    _compiled_and_eager(config, "aot_eager", training, helpers.randn(5, 64))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["default", "tensor", "group a8"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiled_layer_equals_eager(config: str, training: bool) -> None:
    _compiled_and_eager(config, "inductor", training, helpers.randn(5, 64))


def test_traced_layer_with_dynamic_batch_is_not_traced_again() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    layer = _layer().eval()
    run = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    traced = []
    for rows in (2, 3, 7, 65):
        x = helpers.randn(rows, 64)
        with torch.no_grad():
            assert torch.equal(run(x), layer(x))
        traced.append(counter.frame_count)
    assert traced[0] == traced[-1] > 0


def test_layer_learns_xor_exactly() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    wanted = torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.manual_seed(0)
    model = nn.Sequential(TernaryLinear(2, 16), nn.Tanh(), TernaryLinear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert torch.equal((model.eval()(x)[:, 0] > 0).float(), wanted)
    packed = bittorch.export_for_inference(model)
    assert torch.equal((packed(x)[:, 0] > 0).float(), wanted)


@pytest.mark.parametrize("config", CONFIGS)
def test_training_reduces_the_loss(config: str) -> None:
    x, teacher = helpers.randn(64, 64), helpers.randn(64, 10, seed=8)
    layer = _layer(config)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (layer(x) - x @ teacher / 8).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_layer_has_no_cuda_kernels_listed_in_a_cpu_build() -> None:
    from bittorch import _build_info

    assert any(row["device"] == "cuda" for row in _C.kernels()) == bool(_build_info.CUDA_ARCHES)
