"""The learning-rate finder: its rates and losses are those of a loop by hand, and each kind of failure has a name."""

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryLinear
from bittorch.train import find_lr
from tests import helpers

X = helpers.randn(64, 8)
Y = X[:, :3].argmax(1)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
LOSS = nn.functional.cross_entropy


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(TernaryLinear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), TernaryLinear(32, 3))


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3)


def test_rates_and_losses_are_those_of_a_loop_by_hand() -> None:
    model, twin = _model(), _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find_lr(model, _adam(model), LOSS, BATCHES, lowest=1e-5, highest=0.1, steps=25)
    optimizer = _adam(twin)
    for i in range(25):
        x, y = BATCHES[i % 4]
        loss = LOSS(twin(x), y)
        assert math.isclose(found.rates[i], 10 ** (-5 + 4 * i / 24), rel_tol=1e-12)
        assert found.losses[i] == loss.item()
        optimizer.param_groups[0]["lr"] = found.rates[i]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert found.rates[0] < found.suggestion < found.rates[-1]
    assert f"suggested learning rate {found.suggestion:.2g} after 25 rates from 1e-05 to 0.1" in str(found)
    assert find_lr(model, _adam(model), LOSS, BATCHES, lowest=1e-5, highest=0.1, steps=25) == found


def test_a_closure_and_mappings_cost_the_same() -> None:
    model = _model().eval()
    optimizer = _adam(model)
    source = iter(BATCHES * 10)

    def closure() -> Tensor:
        x, y = next(source)
        with torch.autocast("cpu", enabled=False):
            loss = LOSS(model(x), y)
        loss.backward()
        return loss.detach()

    found = find_lr(model, optimizer, closure=closure, steps=20)
    assert found == find_lr(model, optimizer, LOSS, BATCHES, steps=20)
    assert not model.training
    named = [{"input": x} for x, _ in BATCHES]
    targets = iter([y for _, y in BATCHES] * 10)
    assert found.losses == find_lr(model, optimizer, lambda y: LOSS(y, next(targets)), named, steps=20).losses


class _Bowl(nn.Module):
    """``5 w^2``: gradient descent shrinks w below a rate of 0.2, and diverges above it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        return 5 * self.w**2


def _bowl() -> tuple[_Bowl, torch.optim.Optimizer, Callable[[], float]]:
    model = _Bowl()

    def closure() -> float:
        loss = model()
        loss.backward()
        return loss.item()

    return model, torch.optim.SGD(model.parameters(), 1.0), closure


def test_a_loss_that_diverges_ends_the_trial() -> None:
    model, optimizer, closure = _bowl()
    found = find_lr(model, optimizer, closure=closure, lowest=1e-4, highest=100, steps=200)
    assert "the loss diverges at rate" in found.reason
    assert 0.2 < found.rates[-1] < 2
    assert 0.01 < found.suggestion < 0.2
    assert model.w.item() == 1


def test_a_loss_that_becomes_nan_ends_the_trial() -> None:
    model, optimizer, _ = _bowl()
    values = iter([*[3.0 - 0.05 * i for i in range(40)], math.nan])
    found = find_lr(model, optimizer, closure=lambda: next(values), steps=50)
    assert len(found.losses) == len(found.rates) == len(found.smoothed) == 40
    assert f"the loss is nan at rate {1e-6 * 1e6 ** (40 / 49):.2g}" in found.reason
    assert found.suggestion is not None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_never_finite_is_an_error(value: float) -> None:
    model, optimizer, _ = _bowl()
    with pytest.raises(FloatingPointError, match=f"the loss is {value} before any step"):
        find_lr(model, optimizer, closure=lambda: value)
    assert optimizer.param_groups[0]["lr"] == 1


def test_a_loss_that_does_not_fall_has_no_suggestion() -> None:
    model, optimizer, _ = _bowl()
    noise = iter((3 + 0.1 * helpers.randn(100)).tolist())
    with pytest.warns(UserWarning, match=r"no suggestion: the loss does not fall below its start of 2\.95"):
        found = find_lr(model, optimizer, closure=lambda: next(noise))
    assert found.suggestion is None
    assert str(found).startswith("no suggestion after 100 rates")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ([3.0 - 0.02 * i for i in range(100)], "where the loss still falls: try a larger highest"),
        ([math.exp(-i / 3) for i in range(50)] + [1.0] * 50, "at the start of the range: try a smaller lowest"),
    ],
    ids=["end", "start"],
)
def test_a_suggestion_at_an_end_of_the_range_says_so(line: list[float], reason: str) -> None:
    model, optimizer, _ = _bowl()
    values = iter(line)
    assert reason in find_lr(model, optimizer, closure=lambda: next(values)).reason


def test_batches_may_end() -> None:
    model = _model()
    with pytest.warns(UserWarning, match="the batches ended after 4 of 100, and 4 losses are too few"):
        assert find_lr(model, _adam(model), LOSS, iter(BATCHES)).suggestion is None
    with pytest.raises(ValueError, match="batches has no batch"):
        find_lr(model, _adam(model), LOSS, [])


def test_groups_keep_the_ratios_of_their_rates() -> None:
    first, second = _Bowl(), _Bowl()
    model = nn.ModuleList([first, second])
    groups = [{"params": [first.w], "lr": torch.tensor(0.0)}, {"params": [second.w], "lr": 4.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0  # of a scheduler whose first rate is 0
    seen = []

    def closure() -> float:
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        return 1.0 - 0.01 * len(seen)

    find_lr(model, optimizer, closure=closure, lowest=1e-3, highest=1.0, steps=20)
    assert [math.isclose(low * 4, high, rel_tol=1e-6) for low, high in seen] == [True] * 20
    assert math.isclose(seen[0][1], 1e-3)
    assert torch.equal(optimizer.param_groups[0]["lr"], torch.tensor(0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "0 < lowest < highest, got lowest=0.0 and highest=1.0"),
        ({"highest": math.nan}, "0 < lowest < highest"),
        ({"steps": 5}, "steps must be at least 20, got 5"),
        ({"batches": None}, "needs loss_fn and batches, or closure"),
        ({"closure": lambda: 1.0}, "not both"),
        ({"loss_fn": lambda y, t: LOSS(y, t, reduction="none")}, r"one number, got a tensor of shape \(16,\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    model = _model()
    with pytest.raises(ValueError, match=message):
        find_lr(model, _adam(model), **{"loss_fn": LOSS, "batches": BATCHES, **options})


def test_models_that_cannot_be_tried_are_named() -> None:
    model = _model()
    with pytest.raises(ValueError, match="the optimizer has no parameter of the model"):
        find_lr(copy.deepcopy(model), _adam(model), LOSS, BATCHES)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"parameter 0\.weight has no values yet"):
        find_lr(lazy, _adam(lazy), LOSS, BATCHES)


def test_an_interrupted_trial_loses_nothing() -> None:
    model = _model()
    optimizer = _adam(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from BATCHES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_lr(model, optimizer, LOSS, batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, closure = _bowl()
    found = find_lr(model, optimizer, closure=closure, highest=100)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib; install bittorch\[plot\]"):
        found.plot(tmp_path / "rates.png")
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
