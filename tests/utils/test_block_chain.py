"""A model as a chain of blocks that are called alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch.utils.block_chain import Chain, Stop, called, evaluating
from tests import helpers


class _Block(nn.Module):
    def __init__(self, pair: bool = False, writes: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.pair, self.writes = nn.Linear(8, 8), nn.Linear(8, 8), pair, writes

    def forward(self, x: Tensor, *, gain: Tensor) -> Any:
        y = torch.tanh(self.a(x) * gain + self.b(x))
        x = x.add_(y) if self.writes else x + y
        return (x, "weights") if self.pair else x


class _Net(nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(_Block(**how) for _ in range(3))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x, gain = self.first(x), x.mean() * scale  # an argument of its own for each batch
        for layer in self.layers:
            x = layer(x, gain=gain) if not layer.pair else layer(x, gain=gain)[0]
        return self.head(x)


def _chain(model: nn.Module, batches: list[Any]) -> Chain:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    return Chain(model, layers, batches)


BATCHES = [helpers.randn(5, 4), (helpers.randn(2, 3, 4), 2.0), {"x": helpers.randn(4), "scale": 0.5}]


@pytest.mark.parametrize("how", [{}, {"pair": True}, {"writes": True}], ids=["tensors", "tuples", "in place"])
def test_blocks_alone_are_the_model(how: dict[str, bool]) -> None:
    model = _Net(**how).eval()
    with torch.no_grad():
        chain = _chain(model, BATCHES)
        assert chain.blocks == list(model.layers)
        assert chain.before == ["first"]
        assert chain.after() == ["head"]
        assert chain.inside(1) == {"layers.1.a": "a", "layers.1.b": "b"}
        assert chain.leader["layers.2.b"] == "layers.2.a"
        assert [dict(c) for c in chain.counts] == [dict.fromkeys(chain.leader, 1)] * 3
        heads: list[Tensor] = []
        model.head.register_forward_hook(lambda *call: heads.append(call[2]))
        for batch, x in enumerate(chain.first_inputs()):
            for index in range(3):
                chain.run(index, batch, x.clone())
                x = chain.run(index, batch, x)  # a second time the same
            chain.run_rest(batch, x)
            chain.run_whole(batch)
            assert torch.equal(heads[-2], heads[-1])
    assert "forward" not in vars(model.layers[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_changed_weights_are_seen_by_the_blocks_after_them() -> None:
    model = _Net().eval()
    with torch.no_grad():
        chain = _chain(model, BATCHES)
        x = chain.first_inputs()[0]
        model.layers[0].a.weight.mul_(3)
        for index in range(3):
            x = chain.run(index, 0, x)
        torch.testing.assert_close(model.head(x), model(BATCHES[0]), rtol=0, atol=0)


class _Counting(_Block):
    calls = 0

    def forward(self, x: Tensor, *, gain: Tensor) -> Tensor:
        _Counting.calls += 1
        return super().forward(x, gain=gain) * _Counting.calls


@pytest.mark.parametrize("kind", ["state", "skips", "reversed"])
def test_what_is_no_chain_is_called_whole(kind: str) -> None:
    model = _Net().eval()
    if kind == "state":
        model.layers[0] = _Counting()
    elif kind == "skips":
        model.forward = lambda x: model.head(model.layers[0](model.first(x), gain=x.mean()))
    else:
        model.forward = lambda x: model.layers[0](model.layers[1](model.first(x), gain=x.mean()), gain=x.mean())
    with torch.no_grad():
        chain = _chain(model, [helpers.randn(5, 4)])
    assert chain.blocks == []
    assert chain.before == list(chain.leader)
    assert chain.after() == []


@pytest.mark.parametrize("kind", ["leaves out", "changes between"])
def test_batches_that_go_another_way_raise(kind: str) -> None:
    model = _Net().eval()

    def forward(x: Tensor) -> Tensor:
        other = len(x) == 2
        for layer in model.layers[: 1 if other and kind == "leaves out" else 3]:
            x = layer(x + 1 if other and kind == "changes between" else x, gain=1.0)
        return x

    model.forward = forward
    with torch.no_grad(), pytest.raises(ValueError, match="batch 1 does not take the way of batch 0 through the 3"):
        _chain(model, [helpers.randn(5, 8), helpers.randn(2, 8)])


def test_evaluating_puts_modes_and_caches_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[1].eval()
    model.config = type("Config", (), {"use_cache": True})()
    model[1].config = type("Config", (), {"use_cache": True})()  # of a part, as in wrappers and models that see images
    inside: list[bool] = []

    def fails() -> None:
        with evaluating(model):
            inside.extend([model.training, torch.is_grad_enabled(), model.config.use_cache, model[1].config.use_cache])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert inside == [False] * 4
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert [model.config.use_cache, model[1].config.use_cache] == [True, True]


def test_batches_that_ask_for_a_cache_get_none() -> None:
    model, seen = nn.Identity(), []
    model.forward = lambda **named: seen.append(named)
    batches = [{"x": 1, "use_cache": True}, {"x": 1, "use_cache": False}, {"x": 1}]
    for batch in batches:
        called(model, batch)
    assert seen == [{"x": 1, "use_cache": False}, {"x": 1, "use_cache": False}, {"x": 1}]
    assert batches[0]["use_cache"]


def test_stop_ends_a_call_through_handlers_of_errors() -> None:
    def forward(x: Tensor) -> None:
        try:
            raise Stop
        except Exception as error:
            raise AssertionError from error

    model = nn.Module()
    model.forward = forward
    called(model, helpers.randn(1))
