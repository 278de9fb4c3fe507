"""Functions on a model that a deep copy cannot follow."""

import functools
import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryLinear, export_for_inference, quantize_model
from tests import helpers


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(TernaryLinear(8, 16), nn.ReLU(), TernaryLinear(16, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def _net() -> _Net:
    torch.manual_seed(0)
    return _Net().eval()


def _wrapped(module: nn.Module) -> Callable[..., Tensor]:
    old = module.forward

    @functools.wraps(old)
    def forward(*inputs: Tensor) -> Tensor:
        return old(*inputs)

    return forward


def _method(module: nn.Module) -> Callable[..., Tensor]:
    old = module.forward
    return types.MethodType(lambda self, x: old(x), module)


def _closure(held: object) -> Callable[..., Tensor]:
    return lambda x: x if held else -x


class _Calls:
    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


KEEPS_THE_ORIGINAL = {
    "compile": lambda m: torch.compile(m.forward, backend="eager"),
    "no_grad": lambda m: torch.no_grad()(m.forward),
    "autocast": lambda m: torch.autocast("cpu", torch.bfloat16)(m.forward),
    "wraps": _wrapped,
    "method": _method,
    "partial": lambda m: functools.partial(_wrapped(m)),
    "default": lambda m: lambda x, old=m.forward: old(x),
    "weight": lambda m: _closure(next(m.parameters())),
    "list": lambda m: _closure(list(m.children())),
    "object": lambda m: _Calls(torch.no_grad()(m.forward)),
}
FOLLOWED = {
    "bound": lambda m: m.forward,
    "method": lambda m: types.MethodType(type(m).forward, m),
    "partial": lambda m: functools.partial(type(m).forward, m),
    "updated": lambda m: functools.update_wrapper(functools.partial(type(m).forward, m), m.forward),
    "decorated": lambda m: types.MethodType(torch.no_grad()(type(m).forward), m),
    "object": lambda m: _Calls(m.forward),
}


@helpers.each("place", ["", "block"], ids=["root", "inside"])
@helpers.each("make", KEEPS_THE_ORIGINAL.values(), ids=list(KEEPS_THE_ORIGINAL))
def test_a_forward_that_calls_the_original_is_refused(make: Callable[..., object], place: str) -> None:  # FIELD T1
    model = _net()
    module = model.get_submodule(place)
    module.forward = make(module)
    where, remedy = (place, r"model\.get_submodule\('block'\)") if place else ("the model", "model")
    with pytest.raises(ValueError, match=rf"cannot export {where}: its forward .* \(`del {remedy}\.forward`\)"):
        export_for_inference(model)
    with pytest.raises(ValueError, match=f"cannot convert a copy of {where}: its forward was replaced"):
        quantize_model(model)
    del module.forward
    assert torch.equal(export_for_inference(model)(torch.ones(8)), model(torch.ones(8)))


@pytest.mark.parametrize("place", ["", "block"], ids=["root", "inside"])
@pytest.mark.parametrize("make", FOLLOWED.values(), ids=list(FOLLOWED))
def test_a_forward_that_a_copy_follows_is_exported(make: Callable[..., object], place: str) -> None:  # FIELD T1
    model, x = _net(), helpers.randn(3, 8)
    module = model.get_submodule(place)
    module.forward = make(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = export_for_inference(model)
    expected = model(x)
    assert torch.equal(packed(x), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(packed(x), expected)


def test_a_function_that_holds_no_part_of_the_model_is_fine() -> None:
    model = _net()
    model.forward, scale = lambda x: scale * x, 2.0
    assert torch.equal(export_for_inference(model)(torch.ones(8)), torch.full((8,), 2.0))


def test_other_functions_that_hold_parts_of_the_model_warn() -> None:  # FIELD T1
    model = _net()
    model.stages = [lambda x: model.block(x)]
    with pytest.warns(UserWarning, match="stages of the model is or holds a function that refers to modules") as caught:
        export_for_inference(model)
    assert caught[0].filename == __file__
    model = _net()
    model.block.register_forward_hook(lambda *_: model.head)
    with pytest.warns(UserWarning, match="_forward_hooks of block is or holds a function"):
        quantize_model(model)
