"""The first value of a learned scale, whoever gives the layer its weights, and when it stops following them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig, export_for_inference, quantize_
from tests import helpers

METHODS = ("lsq", "seq", "ttq")
X = helpers.randn(5, 48)


def make(method: str = "lsq", **changes: Any) -> TernaryLinear:
    torch.manual_seed(1)
    return TernaryLinear(48, 20, config=TernaryQuantConfig(method=method, **changes))


def scale_of(weight: Tensor, method: str = "lsq", **changes: Any) -> Tensor:
    """That of a layer which is made of this very weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight.detach().clone())
    return TernaryLinear.from_linear(linear, TernaryQuantConfig(method=method, **changes)).weight_scale.detach()


INITS = {
    "init": lambda layer: nn.init.trunc_normal_(layer.weight, std=0.002),
    "data": lambda layer: layer.weight.data.normal_(0, 0.002),
    "new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(helpers.randn(20, 48, seed=9) * 0.002)),
}


# FIELD T5
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", METHODS)
def test_scale_follows_weights_that_are_initialised_later(method: str, init: str) -> None:
    layer = make(method)
    INITS[init](layer)
    codes = layer.eval().dequantized_weight()
    assert (codes != 0).float().mean() > 0.3
    before = layer(X)
    assert torch.equal(layer.train()(X), before)
    assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight, method))
    if method != "ttq":
        assert torch.equal(export_for_inference(layer)(X), layer.eval()(X))


# FIELD T5
def test_scale_of_a_convolution_follows_too() -> None:
    conv = TernaryConv2d(4, 6, 3, config=TernaryQuantConfig(method="lsq", granularity="tensor"))
    nn.init.trunc_normal_(conv.weight, std=0.002)
    conv(helpers.randn(1, 4, 5, 5))
    assert torch.equal(conv.weight_scale.detach(), scale_of(conv.weight.flatten(1), granularity="tensor"))


# FIELD T5
def test_untrained_layers_export_and_load_what_they_compute(tmp_path: Path) -> None:
    layer = make()
    nn.init.trunc_normal_(layer.weight, std=0.002)
    assert torch.equal(export_for_inference(layer)(X), layer.eval()(X))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", METHODS)
def test_state_of_an_untrained_layer_gives_what_it_computes(method: str, init: str, assign: bool) -> None:
    layer = make(method)
    INITS[init](layer)
    state = copy.deepcopy(layer.state_dict())
    assert torch.equal(state["weight_scale"], scale_of(layer.weight, method))
    loaded = TernaryLinear(48, 20, config=layer.config)
    loaded.load_state_dict(state, assign=assign)
    assert torch.equal(loaded.eval()(X), layer.eval()(X))
    INITS["data"](layer)  # it follows until it is trained, also after it was saved
    layer.train()(X)
    assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight, method))


@pytest.mark.parametrize("made", ["here", "on meta"])
def test_apply_that_initialises_sets_the_parameter(made: str) -> None:
    if made == "here":
        layer = make()
    else:
        with torch.device("meta"):
            layer = make()
        layer.to_empty(device="cpu")
    parameter = layer.weight_scale
    nn.Sequential(layer).apply(lambda m: isinstance(m, TernaryLinear) and nn.init.normal_(m.weight, std=0.002))
    assert layer.weight_scale is parameter
    assert torch.equal(parameter.detach(), scale_of(layer.weight))


def test_state_of_a_layer_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = make()
        nn.init.normal_(layer.weight, std=0.002)
        state = layer.state_dict()
        assert torch.equal(state["weight_scale"], scale_of(layer.weight))
    assert layer.state_dict().keys() == state.keys()  # such a tensor cannot be written here


def test_scale_is_kept_once_it_is_trained() -> None:
    layer = make()
    layer(X)
    scale = layer.weight_scale.detach().clone()
    layer.weight.data.mul_(3)
    layer(X)
    layer.eval()(X)
    assert torch.equal(layer.weight_scale.detach(), scale)
    layer.reset_scale()
    assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight))


@pytest.mark.parametrize("copied", [lambda layer: layer, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_scale_that_somebody_set_is_kept(copied: Any) -> None:
    layer = make()
    layer.weight_scale.data.mul_(1.25)
    scale = layer.weight_scale.detach().clone()
    layer = copied(layer)
    layer.weight.data.mul_(3)
    assert torch.equal(layer.apply(id).state_dict()["weight_scale"], scale)
    for mode in (False, True):
        layer.train(mode)(X)
        assert torch.equal(layer.weight_scale.detach(), scale)
    replaced = make()
    replaced.weight_scale = nn.Parameter(scale * 2)
    replaced(X)
    assert torch.equal(replaced.weight_scale.detach(), scale * 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to("cpu")])
def test_copies_of_untrained_layers_follow_as_well(copied: Any) -> None:
    layer = copied(make())
    nn.init.trunc_normal_(layer.weight, std=0.002)
    layer(X)
    assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight))


# FIELD T5
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_training_resumes_bit_for_bit(trained: bool, assign: bool) -> None:
    def steps(layer: TernaryLinear, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            layer(X).square().mean().backward()
            optimizer.step()

    layer = make()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    steps(layer, optimizer, 2)
    state = copy.deepcopy(layer.state_dict())
    other = make()
    if trained:
        steps(other, torch.optim.SGD(other.parameters(), 0.3), 1)
    other.load_state_dict(state, assign=assign)
    for resumed in (layer, other):
        steps(resumed, torch.optim.SGD(resumed.parameters(), 0.1), 2)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.weight_scale, other.weight_scale)


# FIELD T4
@pytest.mark.parametrize("method", METHODS)
def test_dense_checkpoint_into_a_layer_on_meta(method: str) -> None:
    dense = nn.Linear(48, 20)
    with torch.device("meta"):
        layer = TernaryLinear(48, 20, config=TernaryQuantConfig(method=method))
    assert layer.weight_scale.is_meta
    layer.load_state_dict(dense.state_dict(), assign=True, strict=False)
    assert torch.equal(layer.weight_scale.detach(), scale_of(dense.weight, method))
    assert layer.weight_scale.requires_grad
    layer(X).sum().backward()
    assert layer.weight_scale.grad is not None


# FIELD T4
def test_memory_without_values_is_never_a_scale() -> None:
    with torch.device("meta"):
        layer = TernaryLinear(48, 20, config=TernaryQuantConfig(method="lsq"))
    layer.to_empty(device="cpu")
    layer.weight_scale.data.fill_(float("nan"))  # what memory may hold
    layer.weight.data.copy_(helpers.randn(20, 48))
    layer.bias.data.zero_()
    assert torch.isfinite(layer.eval()(X)).all()
    layer.train()(X)
    assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight))


@pytest.mark.parametrize("method", METHODS)
def test_weight_that_is_set_on_a_meta_layer_brings_the_parameter(method: str) -> None:
    with torch.device("meta"):
        layer = TernaryLinear(48, 20, config=TernaryQuantConfig(method=method))
    layer.weight = nn.Parameter(helpers.randn(20, 48))
    layer.bias = nn.Parameter(torch.zeros(20))
    held = dict(layer.named_parameters())["weight_scale"]  # as an optimiser does
    assert torch.equal(held.detach(), scale_of(layer.weight, method))
    layer(X).square().sum().backward()
    assert layer.weight_scale is held
    assert held.grad is not None


def test_fresh_memory_has_a_value_at_once() -> None:
    with torch.device("meta"):
        layer = TernaryLinear(48, 20, config=TernaryQuantConfig(method="lsq"))
    layer.to_empty(device="cpu")
    assert torch.equal(layer.weight_scale.detach(), torch.ones(20))


def test_lists_of_parameters_have_the_scale_that_is_used() -> None:
    layer = make()
    INITS["data"](layer)
    listed = dict(layer.named_parameters(recurse=False, remove_duplicate=False))["weight_scale"]
    assert listed is layer.weight_scale
    assert torch.equal(listed.detach(), scale_of(layer.weight))


def test_loader_that_sets_parameters_itself() -> None:
    with torch.device("meta"):
        layer = TernaryLinear(48, 20, config=TernaryQuantConfig(method="lsq"))
    trained = make()
    trained.weight_scale.data.mul_(1.25)
    for name, value in trained.named_parameters():
        layer._parameters[name] = nn.Parameter(value.detach().clone())
    layer(X)
    assert torch.equal(layer.weight_scale, trained.weight_scale)


# FIELD T5
def test_compiled_layer_sets_its_scale() -> None:
    layer, eager = make(), make()
    for each in (layer, eager):
        torch.manual_seed(2)
        nn.init.trunc_normal_(each.weight, std=0.002)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y = compiled(X)
        helpers.assert_near(y, eager(X).double())
        assert torch.equal(layer.weight_scale, eager.weight_scale)
    y.sum().backward()
    assert layer.weight_scale.grad is not None


def bert(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=16)

    class Ternary(transformers.BertForSequenceClassification):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            quantize_(self, TernaryQuantConfig(method="lsq"))

    return transformers.BertForSequenceClassification(config), Ternary


# FIELD T4
def test_transformers_loads_dense_and_trained_checkpoints(tmp_path: Path) -> None:
    dense, ternary = bert()
    for parameter in dense.parameters():
        parameter.data.mul_(1.5)
    dense.save_pretrained(tmp_path / "dense")
    model = ternary.from_pretrained(tmp_path / "dense")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TernaryLinear)}
    assert len(layers) == 8
    for name, layer in layers.items():
        assert torch.equal(layer.weight, dense.get_parameter(f"{name}.weight"))
        assert torch.equal(layer.weight_scale.detach(), scale_of(layer.weight))
    ids = torch.arange(10)[None]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()(ids, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    again = ternary.from_pretrained(tmp_path / "trained")
    for twin in (again, copy.deepcopy(again).train()):
        twin(ids)
        for name, layer in layers.items():
            assert torch.equal(twin.get_submodule(name).weight_scale, layer.weight_scale)
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
