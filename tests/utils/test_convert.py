import copy
import warnings

import pytest
import torch
from torch import nn

import bittorch
from bittorch import (
    TernaryConv1d,
    TernaryConv2d,
    TernaryConvTranspose2d,
    TernaryEmbedding,
    TernaryLinear,
    TernaryLinearInference,
    TernaryQuantConfig,
    quantize_,
    quantize_model,
)
from tests import helpers


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


def _model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), _Block(), _Block(), nn.LayerNorm(16), nn.Linear(16, 4))


def _ternary(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, TernaryLinear)]


ALL = ["0", "1.up", "1.down", "2.up", "2.down", "4"]


def test_quantize_converts_every_linear_and_keeps_its_parameters() -> None:
    model = _model()
    before = dict(model.named_parameters())
    assert quantize_(model).converted == tuple(ALL)
    assert _ternary(model) == ALL
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert model[0].config == TernaryQuantConfig(method="twn")


def test_quantized_model_computes_with_the_quantised_weights() -> None:
    model = _model()
    ternary, x = quantize_model(model), helpers.randn(5, 8)
    dense = copy.deepcopy(model)
    for name, module in ternary.named_modules():
        if isinstance(module, TernaryLinear):
            dense.get_submodule(name).weight.data = module.dequantized_weight()
    helpers.assert_near(ternary(x), dense(x).double())
    assert not torch.allclose(ternary(x), model(x))


def test_quantize_model_leaves_the_original_alone() -> None:
    model = _model()
    ternary = quantize_model(model)
    assert _ternary(model) == []
    assert _ternary(ternary) == ALL
    assert ternary[0].weight is not model[0].weight
    assert torch.equal(ternary[0].weight, model[0].weight)


@pytest.mark.parametrize("training", [True, False])
def test_quantize_keeps_the_mode(training: bool) -> None:
    model = _model().train(training)
    quantize_(model)
    assert model[0].training == training


@pytest.mark.parametrize(
    ("filter_fn", "expected"),
    [
        ("1.*", ["1.up", "1.down"]),
        (["*.up", "4"], ["1.up", "2.up", "4"]),
        (lambda module, _: module.bias is None, ["1.down", "2.down"]),
        (lambda _, name: name != "0", ALL[1:]),
    ],
    ids=["pattern", "patterns", "by module", "by name"],
)
def test_filter_chooses_layers(filter_fn: object, expected: list[str]) -> None:
    model = _model()
    quantize_(model, filter_fn=filter_fn)
    assert _ternary(model) == expected


@pytest.mark.parametrize(("skip", "expected"), [("4", ALL[:-1]), (["0", "*.down"], ["1.up", "2.up", "4"])])
def test_skip_leaves_layers(skip: object, expected: list[str]) -> None:
    model = _model()
    quantize_(model, skip=skip)
    assert _ternary(model) == expected


def test_configs_by_pattern_first_match_counts() -> None:
    model, up, other = _model(), TernaryQuantConfig(method="absmean"), TernaryQuantConfig(activation_bits=8)
    quantize_(model, {"1.down": None, "*.up": up, "[12].*": other})
    assert _ternary(model) == ["1.up", "2.up", "2.down"]
    assert model[1].up.config == up
    assert model[2].down.config == other


def test_shared_layer_stays_one_and_tied_weights_stay_tied() -> None:
    layer, embedding, head = nn.Linear(8, 8), nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, layer, nn.ReLU(), layer, head)
    for result in (quantize_model(model), model):
        if result is model:
            quantize_(model)
        assert isinstance(result[1], TernaryLinear)
        assert result[1] is result[3]
        assert isinstance(result[4], TernaryLinear)
        assert result[4].weight is result[0].weight


def test_one_layer_under_two_names_of_a_parent_is_swapped_in_both() -> None:
    model = nn.Module()
    model.a = model.b = nn.Linear(4, 4)
    quantize_(model)
    assert isinstance(model.b, TernaryLinear)
    assert model.a is model.b


def test_second_conversion_changes_nothing() -> None:
    model = quantize_model(_model())
    layers = [model.get_submodule(name) for name in ALL]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(model, TernaryQuantConfig(method="absmean"))
    assert [model.get_submodule(name) for name in ALL] == layers
    assert model[0].config.method == "twn"


def test_model_that_is_a_layer() -> None:
    linear = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="use quantize_model"):
        quantize_(linear)
    assert isinstance(quantize_model(linear), TernaryLinear)


def test_subclasses_are_left_alone() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with pytest.warns(UserWarning, match="no layer that can become ternary"):
        quantize_(attention)
    assert _ternary(attention) == []


def test_what_only_resembles_a_layer_stays() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    others = [Doubled(4, 4), normed, nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.Conv3d(4, 4, 1), nn.Embedding(4, 4)]
    model = nn.ModuleList([*others, nn.Linear(4, 4)])
    before = [type(module) for module in nn.ModuleList(others).modules()]
    with pytest.warns(UserWarning, match=r"only 5\.0% of the weights"):
        quantize_(model)
    assert _ternary(model) == ["6"]
    assert [type(module) for module in nn.ModuleList(others).modules()] == before


class _Signals(nn.Module):
    """A layer of every kind that `quantize_` takes, and a table that it takes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.image = nn.Conv2d(1, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embed(tokens).transpose(1, 2)).unsqueeze(1)
        return self.head(self.up(self.image(x)).flatten(2).unflatten(2, (-1, 16)))


KINDS = {"conv": TernaryConv1d, "image": TernaryConv2d, "up": TernaryConvTranspose2d, "head": TernaryLinear}


@pytest.mark.parametrize("config", [None, TernaryQuantConfig(method="lsq"), TernaryQuantConfig(activation_bits=8)])
def test_every_kind_of_layer_becomes_its_twin_and_exports(config: TernaryQuantConfig | None) -> None:
    model, tokens = _Signals(), torch.randint(0, 16, (2, 8))
    weights = {name: getattr(model, name).weight for name in KINDS}
    report = quantize_(model, config)
    assert report.converted == tuple(KINDS)
    for name, kind in KINDS.items():
        assert type(getattr(model, name)) is kind
        assert getattr(model, name).weight is weights[name]
    assert type(model.embed) is nn.Embedding
    model(tokens).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(bittorch.export_for_inference(model)(tokens), model.eval()(tokens))


def test_an_embedding_becomes_ternary_where_it_is_named() -> None:
    named = TernaryQuantConfig(granularity="group", group_size=4)
    for arguments in (
        {"filter_fn": ("*", "embed")},
        {"filter_fn": ["*.embed"]},
        {"config": {"embed": named, "*": TernaryQuantConfig()}},
        {"filter_fn": (name for name in ("head", "embed"))},
    ):
        model = nn.Sequential(_Signals())[0]
        quantize_(model, **arguments)
        assert type(model.embed) is TernaryEmbedding
        assert model.embed.config.granularity == ("group" if "config" in arguments else "channel")
    for arguments in ({"filter_fn": "*"}, {"filter_fn": ("*emb*", "*")}, {"filter_fn": lambda module, name: True}, {}):
        model = _Signals()
        report = quantize_(model, **arguments)
        assert type(model.embed) is nn.Embedding
        assert "quantize_ takes it by name" in str(report)
    model = _Signals()
    quantize_(model, filter_fn=("*", "embed"), skip="embed")
    assert type(model.embed) is nn.Embedding


def test_depth_leaves_convolutions_and_named_embeddings() -> None:
    model = _Signals()
    with pytest.warns(UserWarning, match="convolutions and embeddings stay as they are: embed, conv, image"):
        quantize_(model, filter_fn=("*", "embed"), depth=2)
    assert type(model.embed) is nn.Embedding
    assert type(model.head) is TernaryLinearInference


def test_pattern_without_a_layer_warns_with_near_names() -> None:
    model = _model()
    for arguments in ({"filter_fn": "1.upp"}, {"skip": "1.upp"}, {"config": {"1.upp": TernaryQuantConfig()}}):
        with pytest.warns(UserWarning, match=r"'1\.upp' matches no layer .* 1\.up") as caught:
            quantize_model(model, **arguments)
        assert caught[0].filename == __file__


def test_filter_without_a_layer_warns() -> None:
    with pytest.warns(UserWarning, match="takes none of the layers, such as 0, 1.up") as caught:
        quantize_(_model(), filter_fn=lambda *_: False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_fn": []}, "filter_fn takes none of the layers, such as 0, 1.up, 1.down"),
        ({"config": {}}, "nothing is converted"),
        ({"config": {"*": None}}, "nothing is converted"),
        ({"skip": "*"}, "nothing is converted: skip, config or depth leave all of the layers, such as 0"),
        ({"depth": {}}, "nothing is converted"),
        ({"depth": 3, "config": {}}, "nothing is converted"),
    ],
    ids=str,
)
def test_arguments_that_leave_all_layers_warn(arguments: dict[str, object], message: str) -> None:
    model = _model()
    with pytest.warns(UserWarning, match=message) as caught:
        quantize_(model, **arguments)
    assert caught[0].filename == __file__
    assert [type(model.get_submodule(name)) for name in ALL] == [nn.Linear] * len(ALL)


def test_layers_without_a_size_yet_warn_until_they_have_one() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.warns(
        UserWarning, match="layers without a size yet stay as they are: 0; call the model once"
    ) as caught:
        converted = quantize_model(model)
    assert caught[0].filename == __file__
    assert _ternary(converted) == ["2"]
    model(helpers.randn(2, 6))
    assert _ternary(quantize_model(model)) == ["0", "2"]


def test_convolutions_become_ternary_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )
    before = dict(model.named_parameters())
    quantize_(model)
    assert [type(model[i]) for i in (0, 2, 4)] == [bittorch.TernaryConv2d, bittorch.TernaryConv2d, TernaryLinear]
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    x = helpers.randn(2, 3, 8, 8)
    assert torch.equal(bittorch.export_for_inference(model)(x), model.eval()(x))


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.ReLU()), lambda: nn.Embedding(3, 4)])
def test_model_without_layers_warns(make: object) -> None:
    with pytest.warns(UserWarning, match="no layer that can become ternary"):
        quantize_(make())


def test_a_layer_that_cannot_be_converted_is_named_and_nothing_changes() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"cannot convert 0: group_size must divide in_features, got group_size=16"):
        quantize_(model, TernaryQuantConfig(granularity="group", group_size=16))
    assert _ternary(model) == []


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.complex64, "its weight is torch.complex64, and ternary masters are floating"),
        (torch.float64, "its weight is torch.float64, .* call model.float"),
        (torch.float8_e4m3fn, "its weight is torch.float8_e4m3fn, .* call model.float"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["twn", "lsq"])
def test_weights_that_are_no_masters_are_refused(dtype: torch.dtype, message: str, method: str) -> None:
    model = _model()
    model[1].up.weight = nn.Parameter(torch.zeros(32, 16).to(dtype))
    with pytest.raises(TypeError, match=rf"cannot convert 1\.up: {message}"):
        quantize_(model, TernaryQuantConfig(method=method))
    assert _ternary(model) == []


class Int8Weight(torch.Tensor):
    """A quantised weight as those of torchao: a tensor subclass that says it is float32 and holds integers."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> "Int8Weight":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: object) -> "Int8Weight":
        return Int8Weight(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: object, types: object, args: tuple = (), kwargs: object = None) -> object:
        if func is torch.ops.aten.detach.default:
            return Int8Weight(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of a quantised weight")


def _int8(*shape: int) -> nn.Parameter:
    return nn.Parameter(Int8Weight(torch.zeros(shape, dtype=torch.int8), torch.ones(shape[0])), requires_grad=False)


@pytest.mark.parametrize("depth", [None, 2])
def test_weight_that_is_quantised_already_is_refused(depth: int | None) -> None:  # FIELD T13
    model = _model()
    model[1].up.weight = _int8(32, 16)
    with pytest.raises(TypeError, match=r"cannot convert 1\.up: its weight is a Int8Weight, a tensor subclass"):
        quantize_(model, depth=depth)
    assert _ternary(model) == []


def test_trained_layer_whose_weight_was_quantised_does_not_export() -> None:  # FIELD T13
    model = _model()
    quantize_(model)
    model[1].up.weight = _int8(32, 16)
    for act in (bittorch.export_for_inference, bittorch.utils.summary):
        with pytest.raises(TypeError, match=r"1\.up: its weight is a Int8Weight, a tensor subclass"):
            act(model)


def test_weight_that_is_no_parameter_is_refused() -> None:
    model = _model()
    del model[1].up.weight
    model[1].up.weight = torch.zeros(32, 16)
    with pytest.raises(TypeError, match=r"cannot convert 1\.up: its weight is a Tensor and no parameter"):
        quantize_(model)


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        ("register_forward_hook", "forward"),
        ("register_forward_pre_hook", "forward"),
        ("register_full_backward_hook", "backward"),
        ("register_full_backward_pre_hook", "backward"),
        ("register_state_dict_post_hook", "state dict"),
        ("register_load_state_dict_pre_hook", "state dict"),
    ],
)
@pytest.mark.parametrize("depth", [None, 3], ids=["train", "planes"])
def test_layers_with_hooks_are_refused(register: str, kind: str, depth: int | None) -> None:
    model = _model()
    getattr(model[4], register)(lambda *_: None)
    with pytest.raises(ValueError, match=f"cannot convert 4: it has {kind} hooks, which would be lost"):
        quantize_(model, depth=depth)
    assert _ternary(model) == []


def test_layer_whose_forward_was_replaced_is_refused() -> None:
    model = _model()
    model[4].forward = lambda x: 0 * x
    with pytest.raises(ValueError, match="cannot convert 4: its forward was replaced"):
        quantize_(model)


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("register_parameter", nn.Parameter(torch.ones(1))),
        ("register_buffer", torch.ones(1)),
        ("add_module", nn.ReLU()),
    ],
    ids=["parameter", "buffer", "module"],
)
@pytest.mark.parametrize("depth", [None, 3], ids=["train", "planes"])
def test_layer_with_something_registered_beside_is_refused(register: str, value: object, depth: int | None) -> None:
    model = _model()
    getattr(model[4], register)("gain", value)
    with pytest.raises(ValueError, match="cannot convert 4: it has 'gain' beside its weight and bias, which would be"):
        quantize_(model, depth=depth)
    assert _ternary(model) == []


def test_wrapped_model_is_refused() -> None:
    with pytest.raises(TypeError, match="wrapped in DataParallel; convert the model first"):
        quantize_(nn.DataParallel(_model()))


def test_converted_model_trains_and_exports() -> None:
    model = quantize_model(_model(), skip="4")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = helpers.randn(64, 8), helpers.randn(64, 4, seed=2)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(bittorch.export_for_inference(model)(x), model.eval()(x))
