import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import (
    TernaryConv2d,
    TernaryConv2dInference,
    TernaryConvTranspose2d,
    TernaryLinear,
    TernaryLinearInference,
    TernaryQuantConfig,
    export_for_inference,
)
from tests import helpers

GRANULARITIES = {"tensor": {"per_channel": False}, "channel": {}, "group": {"granularity": "group", "group_size": 16}}


def _model(dtype: torch.dtype = torch.float32, bias: bool = True, **config: object) -> nn.Sequential:
    torch.manual_seed(1)
    layer = {"bias": bias, "config": TernaryQuantConfig(**config), "dtype": dtype}
    return nn.Sequential(TernaryLinear(48, 32, **layer), nn.ReLU(), TernaryLinear(32, 7, **layer))


@helpers.each("granularity", GRANULARITIES)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each("bias", [True, False], ids=["bias", "no bias"])
@helpers.each("activation_bits", [None, 8, 16, 24])
def test_export_gives_the_same_bits(
    granularity: str, dtype: torch.dtype, bias: bool, activation_bits: int | None
) -> None:
    model = _model(dtype, bias, activation_bits=activation_bits, **GRANULARITIES[granularity])
    packed = export_for_inference(model)
    model.eval()
    for batch in (1, 2, 7, 65):
        x = helpers.randn(batch, 48, seed=batch, dtype=dtype)
        expected = model(x)
        assert expected.requires_grad
        assert torch.equal(packed(x), expected)
        with torch.no_grad():
            assert torch.equal(packed(x), model(x))
        with torch.inference_mode():
            assert torch.equal(packed(x), expected)
    x = helpers.randn(2, 3, 48, dtype=dtype)
    assert torch.equal(packed(x), model(x))
    assert torch.equal(packed(x[0, 0]), model(x[0, 0]))


@helpers.each("method", ["max", "twn", "absmean", "absmedian", "optimal", "nm34"])
@helpers.each("scale", ["ls", "mean", "max", "rms"])
def test_export_of_every_method_gives_the_same_bits(method: str, scale: str) -> None:
    model, x = _model(method=method, scale=scale), helpers.randn(5, 48)
    assert torch.equal(export_for_inference(model)(x), model.eval()(x))


@helpers.each("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
@helpers.each("activation_bits", [None, 8, 16, 24])
@helpers.each("granularity", GRANULARITIES)
def test_export_gives_the_same_bits_under_autocast(
    dtype: torch.dtype, activation_bits: int | None, granularity: str
) -> None:
    model = _model(activation_bits=activation_bits, **GRANULARITIES[granularity])
    packed, x = export_for_inference(model), helpers.randn(5, 48)
    with torch.autocast("cpu", dtype=dtype):
        y = packed(x)
        assert torch.equal(y, model.eval()(x))
    assert y.dtype == dtype


def _assert_same_compiled(backend: str, activation_bits: int | None) -> None:
    torch._dynamo.reset()
    model, x = _model(activation_bits=activation_bits), helpers.randn(5, 48)
    packed = export_for_inference(model)
    with torch.no_grad():
        compiled = torch.compile(packed, fullgraph=True, backend=backend)(x)
        assert torch.equal(compiled, torch.compile(model.eval(), fullgraph=True, backend=backend)(x))
        assert torch.equal(compiled, model(x))


@pytest.mark.parametrize("activation_bits", [None, 8, 16, 24])
def test_export_gives_the_same_bits_when_traced(activation_bits: int | None) -> None:
    _assert_same_compiled("aot_eager", activation_bits)


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [None, 8, 16, 24])
def test_export_gives_the_same_bits_when_compiled(activation_bits: int | None) -> None:
    _assert_same_compiled("inductor", activation_bits)


@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (3, 1), (5, 64), (257, 3), (0, 4), (4, 0)], ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_export_of_edge_sizes_gives_the_same_bits(in_features: int, out_features: int, per_channel: bool) -> None:
    layer = TernaryLinear(in_features, out_features, per_channel=per_channel)
    x = helpers.randn(3, in_features)
    assert torch.equal(export_for_inference(layer)(x), layer.eval()(x))


def test_export_with_two_threads_gives_the_same_bits() -> None:
    model, x = _model(), helpers.randn(200, 48)
    packed = export_for_inference(model)
    with helpers.threads(2):
        two = packed(x)
    with helpers.threads(1):
        assert torch.equal(two, model.eval()(x))


def test_export_leaves_the_trained_model_alone() -> None:
    model = _model().train()
    model(helpers.randn(3, 48)).sum().backward()
    before = {name: (p, p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    packed = export_for_inference(model)
    assert model.training
    assert all(module.training for module in model.modules())
    for name, p in model.named_parameters():
        same, value, grad = before[name]
        assert p is same
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)
        assert p.requires_grad
    expected = packed(torch.ones(48))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(packed(torch.ones(48)), expected)
    assert all(module.bias.any() for module in (packed[0], packed[2]))


def test_export_is_in_eval_mode_without_parameters() -> None:
    packed = export_for_inference(_model().train())
    assert not any(module.training for module in packed.modules())
    assert not list(packed.parameters())
    assert [type(module) for module in packed] == [TernaryLinearInference, nn.ReLU, TernaryLinearInference]


def test_export_of_a_root_layer() -> None:
    layer, x = TernaryLinear(9, 4), helpers.randn(2, 9)
    packed = export_for_inference(layer)
    assert isinstance(packed, TernaryLinearInference)
    assert torch.equal(packed(x), layer.eval()(x))


def test_exported_model_can_be_exported_again_with_a_warning() -> None:
    packed, x = export_for_inference(_model()), helpers.randn(2, 48)
    with pytest.warns(UserWarning, match="no ternary layer to export"):
        again = export_for_inference(packed)
    assert torch.equal(again(x), packed(x))


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(TernaryLinear(8, 8), nn.LayerNorm(8)) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": TernaryLinear(8, 3), "b": nn.Linear(8, 3)})
        self.again = self.blocks[0]
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, self.again):
            x = block(x + self.offset)
        return self.heads["a"](x) + self.heads["b"](x)


def test_export_of_nested_modules_gives_the_same_bits() -> None:
    model, x = _Nested(), helpers.randn(4, 8)
    packed = export_for_inference(model)
    assert torch.equal(packed(x), model.eval()(x))
    assert isinstance(packed.heads["a"], TernaryLinearInference)
    assert type(packed.heads["b"]) is nn.Linear
    assert not any(isinstance(module, TernaryLinear) for module in packed.modules())


def test_export_keeps_shared_modules_shared() -> None:
    packed = export_for_inference(_Nested())
    assert packed.again is packed.blocks[0]
    layer = TernaryLinear(8, 8)
    twice = export_for_inference(nn.Sequential(layer, nn.ReLU(), layer))
    assert twice[0] is twice[2]


def test_export_copies_everything_else() -> None:
    model = _Nested()
    packed = export_for_inference(model)
    assert packed.offset.data_ptr() != model.offset.data_ptr()
    assert packed.heads["b"].weight is not model.heads["b"].weight
    assert torch.equal(packed.heads["b"].weight, model.heads["b"].weight)


def test_export_skips_what_the_predicate_says() -> None:
    model, seen = _Nested(), []

    def skip(name: str, module: nn.Module) -> bool:
        seen.append((name, module))
        return name == "heads.a"

    packed = export_for_inference(model, skip)
    assert isinstance(packed.heads["a"], TernaryLinear)
    assert isinstance(packed.blocks[1][0], TernaryLinearInference)
    assert [name for name, _ in seen] == ["blocks.0.0", "blocks.1.0", "heads.a"]
    assert all(isinstance(module, TernaryLinear) for _, module in seen)
    x = helpers.randn(4, 8)
    assert torch.equal(packed(x), model.eval()(x))


def test_export_that_skips_everything_warns() -> None:
    with pytest.warns(UserWarning, match="no ternary layer to export"):
        packed = export_for_inference(_model(), lambda name, module: True)
    assert isinstance(packed[0], TernaryLinear)


def test_export_does_not_warn_otherwise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_for_inference(_model())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_export_of_an_unquantised_layer_is_linear(bias: bool) -> None:
    layer, x = TernaryLinear(9, 4, bias, quantize=False), helpers.randn(2, 9)
    layer.weight.requires_grad_(False)
    with pytest.warns(
        UserWarning, match="all 1 ternary layers to export have quantize=False and stay in full"
    ) as caught:
        plain = export_for_inference(layer)
    assert caught[0].filename == __file__
    assert type(plain) is nn.Linear
    assert torch.equal(plain(x), layer.eval()(x))
    assert not plain.weight.requires_grad
    assert plain.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_export_refuses_non_finite_weights_and_names_the_layer(value: float) -> None:
    model = _Nested()
    with torch.no_grad():
        model.blocks[1][0].weight[3, 1] = value
    with pytest.raises(ValueError, match=r"cannot export blocks\.1\.0: w must be finite, got 1 NaN or Inf .* row 3"):
        export_for_inference(model)


def test_export_refuses_meta_weights_and_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"^cannot export heads\.a: it is on the meta device"):
        export_for_inference(nn.ModuleDict({"heads": nn.ModuleDict({"a": TernaryLinear(4, 3, device="meta")})}))


def test_export_linear_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="the layer must be a TernaryLinear, got Linear"):
        bittorch.export_linear_to_inference(nn.Linear(4, 3))


def test_export_linear_keeps_mode_and_configuration() -> None:
    layer = TernaryLinear(32, 5, config=TernaryQuantConfig(granularity="group", group_size=8, activation_bits=8))
    packed = bittorch.export_linear_to_inference(layer)
    assert packed.training
    assert (packed.in_features, packed.out_features, packed.groups, packed.activation_bits) == (32, 5, 4, 8)
    codes, scale = bittorch.TernaryQuantizer(layer.config).quantize(layer.weight)
    assert torch.equal(packed.weight_packed, helpers.pack(codes))
    assert torch.equal(packed.scale, scale)
    assert torch.equal(packed.bias, layer.bias)
    assert not packed.bias.requires_grad


def test_export_of_a_half_model_keeps_the_dtype_of_the_bias() -> None:
    packed = export_for_inference(_model(torch.bfloat16))
    assert packed[0].bias.dtype == torch.bfloat16
    assert packed[0].scale.dtype == torch.float32


def test_export_of_a_float64_layer_runs_in_float32() -> None:
    layer = TernaryLinear(48, 20, backend="python", dtype=torch.float64)
    packed, x = export_for_inference(layer), helpers.randn(5, 48)
    assert packed.bias.dtype == torch.float32
    helpers.assert_near(packed(x), layer.eval()(x.double()))


def test_exported_model_survives_deepcopy() -> None:
    packed, x = export_for_inference(_Nested()), helpers.randn(4, 8)
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))


class _OwnForward(TernaryLinear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class _OwnCall(TernaryLinear):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) + 1


def test_export_refuses_what_packing_would_lose() -> None:
    with pytest.raises(TypeError, match="cannot export 0: _OwnForward overrides forward"):
        export_for_inference(nn.Sequential(_OwnForward(4, 4)))
    model = nn.Sequential(TernaryLinear(4, 4))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match="cannot export 0: it has forward hooks"):
        export_for_inference(model)
    model = nn.Sequential(TernaryLinear(4, 4))
    model[0].forward = lambda x: x
    with pytest.raises(ValueError, match="cannot export 0: its forward was replaced"):
        export_for_inference(model)
    with pytest.raises(TypeError, match="cannot export 0: _OwnCall overrides __call__"):
        export_for_inference(nn.Sequential(_OwnCall(4, 4)))


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("register_parameter", nn.Parameter(torch.ones(4))),
        ("register_buffer", torch.ones(4)),
        ("register_module", nn.Linear(4, 4)),
    ],
    ids=["parameter", "buffer", "module"],
)
def test_export_refuses_layers_with_something_registered_beside(register: str, value: object) -> None:
    model = nn.Sequential(TernaryLinear(4, 4))
    getattr(model[0], register)("gain", value)
    with pytest.raises(ValueError, match="cannot export 0: it has 'gain' beside its weight and bias"):
        export_for_inference(model)


def test_export_packs_what_a_parametrisation_makes_of_the_weight() -> None:
    layer, x = TernaryLinear(8, 4), helpers.randn(2, 8)
    nn.utils.parametrizations.weight_norm(layer)
    packed = export_for_inference(nn.Sequential(layer, nn.Linear(4, 4)))
    assert torch.equal(packed[0](x), layer.eval()(x))


def test_tied_weights_share_their_codes() -> None:
    layers = [TernaryLinear(8, 4), TernaryLinear(8, 4), TernaryLinear(8, 4, activation_bits=8), TernaryLinear(8, 4)]
    layers.insert(3, TernaryLinear(8, 4, config=TernaryQuantConfig(method="absmean")))
    for layer in layers[1:4]:
        layer.weight = layers[0].weight
    packed = export_for_inference(nn.ModuleList(layers))
    x = helpers.randn(2, 8)
    assert packed[1].weight_packed is packed[0].weight_packed
    assert packed[1].scale is packed[0].scale
    assert packed[2].weight_packed is packed[0].weight_packed  # whatever the activations
    assert len({id(layer.weight_packed) for layer in packed}) == 3  # of one weight, and quantised alike
    for layer, twin in zip(layers, packed, strict=True):
        assert torch.equal(twin(x), layer.eval()(x))


def test_a_transposed_convolution_with_the_weight_of_another_has_rows_of_its_own() -> None:
    layers = [TernaryConv2d(8, 8, 3), *(TernaryConvTranspose2d(8, 8 * g, 3, groups=g) for g in (1, 2))]
    layers += [TernaryConv2d(8, 8, 3), TernaryConvTranspose2d(8, 8, 3, stride=2)]
    for layer in layers[1:]:
        layer.weight = layers[0].weight
    packed, x = export_for_inference(nn.ModuleList(layers)), helpers.randn(1, 8, 6, 6)
    assert packed[3].weight_packed is packed[0].weight_packed
    assert packed[4].weight_packed is packed[1].weight_packed
    for layer, twin in zip(layers, packed, strict=True):
        assert torch.equal(twin(x), layer.eval()(x))


def test_weights_that_are_made_at_each_look_share_nothing() -> None:
    layers = nn.ModuleList(nn.utils.parametrizations.weight_norm(TernaryLinear(8, 4)) for _ in range(4))
    packed, x = export_for_inference(layers), helpers.randn(2, 8)
    for layer, twin in zip(layers, packed, strict=True):
        assert torch.equal(twin(x), layer.eval()(x))


def test_export_refuses_an_attention_that_does_not_call_its_layer() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with pytest.warns(UserWarning, match="reads the weight of out_proj without calling it") as caught:
        attention.out_proj = TernaryLinear(8, 8)
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match=r"attention\.out_proj is ternary, but MultiheadAttention reads"):
        export_for_inference(nn.ModuleDict({"attention": attention}))


def test_export_of_a_wrapped_model_says_what_to_export() -> None:
    class FSDPModule(nn.Module):
        pass

    class Sharded(FSDPModule, nn.Sequential):
        pass

    with pytest.raises(TypeError, match=r"wrapped in DataParallel; export model\.module"):
        export_for_inference(nn.DataParallel(nn.Sequential(TernaryLinear(4, 4))))
    with pytest.raises(TypeError, match="sharded by fully_shard; export before"):
        export_for_inference(Sharded(TernaryLinear(4, 4)))


class _ConvNet(nn.Module):
    """Convolutions of every kind, one of them twice, and a linear layer."""

    def __init__(self, activation_bits: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config = TernaryQuantConfig(activation_bits=activation_bits)
        group = TernaryQuantConfig(activation_bits=activation_bits, granularity="group", group_size=36)
        self.first = TernaryConv2d(3, 8, 3, padding="same", bias=False, config=config, dtype=dtype)
        self.twice = TernaryConv2d(8, 8, 3, padding=1, config=group, dtype=dtype)
        self.down = TernaryConv2d(8, 12, (3, 2), 2, padding=(1, 0), groups=2, config=config, dtype=dtype)
        self.round = TernaryConv2d(12, 4, 3, padding=1, padding_mode="circular", config=config, dtype=dtype)
        self.plain = TernaryConv2d(4, 4, 1, quantize=False, dtype=dtype)
        self.again = self.twice
        self.head = TernaryLinear(4 * 5 * 5, 3, config=config, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.twice(self.first(x).relu()).relu()).relu()
        return self.head(self.plain(self.round(self.down(x).relu())).flatten(1))


def _conv_net(*args: object, **arguments: object) -> _ConvNet:
    torch.manual_seed(4)
    return _ConvNet(*args, **arguments)


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("activation_bits", [None, 8, 16, 24])
def test_export_of_convolutions_gives_the_same_bits(activation_bits: int | None, dtype: torch.dtype) -> None:
    model = _conv_net(activation_bits, dtype)
    packed = export_for_inference(model)
    kinds = [type(module) for module in (packed.first, packed.twice, packed.down, packed.round, packed.plain)]
    assert kinds == [TernaryConv2dInference] * 4 + [nn.Conv2d]
    assert packed.again is packed.twice
    model.eval()
    for samples in (0, 1, 3):
        x = helpers.randn(samples, 3, 10, 10, dtype=dtype)
        assert torch.equal(packed(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(packed(x), model(x))


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_traced_export_of_convolutions_gives_the_same_bits(activation_bits: int | None) -> None:
    torch._dynamo.reset()
    model, x = _conv_net(activation_bits), helpers.randn(2, 3, 10, 10)
    packed = export_for_inference(model)
    with torch.no_grad():
        assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), model.eval()(x))


class _OwnConvForward(TernaryConv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_export_refuses_convolutions_that_packing_would_change() -> None:
    with pytest.raises(TypeError, match="cannot export 0: _OwnConvForward overrides forward"):
        export_for_inference(nn.Sequential(_OwnConvForward(1, 1, 1)))
    hooked = TernaryConv2d(1, 1, 1)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="cannot export 0: it has forward hooks"):
        export_for_inference(nn.Sequential(hooked))
    with pytest.raises(TypeError, match="the layer must be a TernaryConv2d, got Conv2d"):
        bittorch.export_conv2d_to_inference(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="cannot export 0: it is on the meta device"):
        export_for_inference(nn.Sequential(TernaryConv2d(1, 1, 1, device="meta")))


def test_export_skips_convolutions_that_the_predicate_names() -> None:
    model = _conv_net()
    packed = export_for_inference(model, skip=lambda name, module: name == "first")
    assert type(packed.first) is TernaryConv2d
    x = helpers.randn(2, 3, 10, 10)
    assert torch.equal(packed(x), model.eval()(x))


@pytest.mark.parametrize("kind", ["trained", "packed", "planes"])
def test_torch_export_takes_any_batch_and_keeps_the_bits(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    if kind == "planes":
        model = bittorch.quantize_model(model, depth=3, filter_fn=["3", "5"])
    else:
        learned = TernaryQuantConfig(method="lsq", activation_bits=8)
        bittorch.quantize_(model, {"3": TernaryQuantConfig(), "*": learned})
    model = export_for_inference(model) if kind == "packed" else model.eval()
    x = helpers.randn(4, 2, 5, 5)
    shapes = {"input": {0: torch.export.Dim("samples", min=2, max=64)}}
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for samples in (2, 4):
        assert torch.equal(loaded(x[:samples]), model(x[:samples]))
