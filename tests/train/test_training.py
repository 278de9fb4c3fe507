"""Ternary layers under what torch wraps around a training loop: checkpointing, compilation, autocast with GradScaler,
and training that stops and goes on from a file."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.train import QuantWarmup, TernaryAfter, WeightDecayOff
from tests import helpers

LINEAR = {
    "fixed": TernaryQuantConfig(),
    "group": TernaryQuantConfig(method="absmean", granularity="group", group_size=8),
    "clipped": TernaryQuantConfig(ste="clipped"),
    "learned": TernaryQuantConfig(method="lsq"),
    "two scales": TernaryQuantConfig(method="ttq"),
    "int8": TernaryQuantConfig(activation_bits=8),
    "learned int8": TernaryQuantConfig(method="seq", activation_bits=8),
}
X, Y = helpers.randn(12, 3, 6, 6), torch.arange(12) % 7


def _model(name: str = "fixed") -> nn.Sequential:
    torch.manual_seed(0)
    config = LINEAR[name]
    plain = TernaryQuantConfig(method="twn", activation_bits=config.activation_bits)
    return nn.Sequential(
        TernaryConv2d(3, 4, 3, padding=1, config=config if config.learned or config.ste == "clipped" else plain),
        nn.ReLU(),
        nn.Flatten(),
        TernaryLinear(144, 32, config=LINEAR[name]),
        nn.ReLU(),
        TernaryLinear(32, 7, config=LINEAR[name]),
    )


def _loss(y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(y.float(), Y)


def _gradients(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    yield x.grad
    for parameter in model.parameters():
        yield parameter.grad


@helpers.each("use_reentrant", [False, True], ids=["", "reentrant"])
@helpers.each("share", [1.0, 0.5], ids=["", "warm-up"])
@helpers.each("name", LINEAR)
def test_activation_checkpointing_gives_the_same_gradients(name: str, share: float, use_reentrant: bool) -> None:
    model, x = _model(name), X.clone().requires_grad_()
    for i in (0, 3, 5):
        model[i].quant_lambda = share
    twin, twin_x = copy.deepcopy(model), X.clone().requires_grad_()
    _loss(model(x)).backward()
    _loss(checkpoint(twin, twin_x, use_reentrant=use_reentrant)).backward()
    for actual, expected in zip(_gradients(twin, twin_x), _gradients(model, x), strict=True):
        assert torch.equal(actual, expected)


def _assert_compiled_trains_as_eager(name: str, backend: str) -> None:
    torch._dynamo.reset()
    model = _model(name)
    twin = copy.deepcopy(model)
    losses = []
    for module, run in ((model, model), (twin, torch.compile(twin, fullgraph=True, backend=backend))):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            loss = _loss(run(X))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert losses[2] < losses[0]
    torch.testing.assert_close(losses[3:], losses[:3], rtol=1e-6, atol=0)
    for actual, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert helpers.relative_l2(actual, expected) <= 1e-6


WARM = ("two scales", "learned int8")


@pytest.mark.parametrize("name", helpers.slow_but(["fixed"], [name for name in LINEAR if name not in WARM]))
def test_traced_model_trains_as_eager(name: str) -> None:
    _assert_compiled_trains_as_eager(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", WARM)
def test_warm_up_is_not_traced_anew_each_step(name: str) -> None:
    """The last steps are those of a model that is ternary throughout."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = _model(name)
    run, warmup = torch.compile(model, fullgraph=True, backend=counter), QuantWarmup(model, 12)
    for _ in range(14):
        losses, gradients = [], []
        for forward in (run, model):
            losses.append(_loss(forward(X)))
            gradients.append(torch.autograd.grad(losses[-1], tuple(model.parameters())))
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        for actual, expected in zip(*gradients, strict=True):
            assert helpers.relative_l2(actual, expected) <= 1e-5
        warmup.step()
    assert counter.frame_count <= 4  # share 0, any share, its end, and one for what dynamo learns on the way


@pytest.mark.slow
def test_compiled_model_trains_as_eager() -> None:
    _assert_compiled_trains_as_eager("learned int8", "inductor")


def _half_step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.float16):
        loss = _loss(model(x))
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


@pytest.mark.parametrize("name", LINEAR)
def test_grad_scaler_skips_steps_that_are_not_finite(name: str) -> None:
    model = _model(name)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in model.parameters()]
    _half_step(model, optimizer, scaler, X)  # scaled gradients beyond the range of float16
    assert scaler.get_scale() == 2.0**39
    scaler.update(256.0)
    poisoned = X.clone()
    poisoned[3, 0, 0, 0] = float("nan")
    assert _half_step(model, optimizer, scaler, poisoned).isnan()
    assert scaler.get_scale() == 128.0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    losses = [_half_step(model, optimizer, scaler, X) for _ in range(8)]
    assert scaler.get_scale() == 128.0
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() and not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", LINEAR)
def test_training_under_bfloat16_autocast_follows_that_in_float32(name: str) -> None:
    losses = []
    for half in (False, True):
        model = _model(name)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(10):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                y = model(X)
            assert y.dtype == (torch.bfloat16 if half else torch.float32)
            optimizer.zero_grad()
            _loss(y).backward()
            assert all(p.grad.dtype == torch.float32 for p in model.parameters())
            optimizer.step()
            losses.append(_loss(y).detach())
    assert losses[9] < 0.97 * losses[0]
    # logits of 8 bits, and a code that flips a step earlier or later
    torch.testing.assert_close(losses[10:], losses[:10], rtol=0.01, atol=0)


class _Run:
    """All that a training loop has and must find again."""

    def __init__(self, name: str) -> None:
        self.model = _model(name)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2, weight_decay=0.1)
        self.parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "rate": torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 12),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3),
            "stages": TernaryAfter(self.model, 2),
            "warmup": QuantWarmup(self.model, 8),
            "decay": WeightDecayOff(self.optimizer, 7),
        }

    def train(self, steps: int) -> list[Tensor]:
        losses = []
        for _ in range(steps):
            losses.append(_half_step(self.model, self.optimizer, self.parts["scaler"], X))
            for name in ("rate", "stages", "warmup", "decay"):
                self.parts[name].step()
        return losses

    def save(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, path)

    def load(self, path: Path) -> None:
        states = torch.load(path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(states[name])


@pytest.mark.parametrize("stop", [1, 5, 9])
@pytest.mark.parametrize("name", LINEAR)
def test_training_goes_on_from_a_file_bit_for_bit(name: str, stop: int, tmp_path: Path) -> None:
    whole, first, second = _Run(name), _Run(name), _Run(name)
    expected = whole.train(12)
    losses = first.train(stop)
    first.save(tmp_path / "checkpoint.pt")
    for parameter in second.model.parameters():
        nn.init.zeros_(parameter)
    second.load(tmp_path / "checkpoint.pt")
    losses += second.train(12 - stop)
    assert losses == expected
    for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(second.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
