import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.train import QuantWarmup, TernaryAfter, WeightDecayOff
from tests import helpers


def _model(**config: object) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [TernaryLinear(n, 8, config=TernaryQuantConfig(**config)) for n in (12, 8)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def test_warmup_raises_the_share_to_one() -> None:
    model = _model()
    warmup, shares = QuantWarmup(model, 4), []
    for _ in range(6):
        shares.append([model[0].quant_lambda, model[2].quant_lambda])
        warmup.step()
    assert shares == [[share] * 2 for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]
    QuantWarmup(model, 0)
    assert model[0].quant_lambda == 1


def test_two_stages() -> None:
    model, x = _model(), helpers.randn(3, 12)
    plain = TernaryLinear(8, 8, quantize=False)
    both = nn.Sequential(model, plain)
    ternary = both(x)
    stages = TernaryAfter(both, 2)
    dense = linear(linear(x, model[0].weight, model[0].bias).relu(), model[2].weight, model[2].bias)
    for _ in range(2):
        assert torch.equal(model(x), dense)
        stages.step()
    assert torch.equal(both(x), ternary)
    assert not plain.quantize


def test_convolutions_take_part() -> None:
    conv, x = TernaryConv2d(2, 3, 3), helpers.randn(2, 2, 5, 5)
    ternary = conv(x)
    stages, warmup = TernaryAfter(conv, 1), QuantWarmup(conv, 2)
    dense = conv._conv_forward(x, conv.weight, conv.bias)
    assert torch.equal(conv(x), dense)
    stages.step()
    helpers.assert_near(conv(x), dense.double())
    for _ in range(2):
        warmup.step()
    assert torch.equal(conv(x), ternary)


@pytest.mark.parametrize("schedule", [QuantWarmup, TernaryAfter])
def test_model_without_ternary_layers_warns(schedule: type) -> None:
    with pytest.warns(UserWarning, match=f"{schedule.__name__} does nothing: the model has no Ternary") as caught:
        schedule(nn.Linear(3, 3), 4)
    assert caught[0].filename == __file__


def test_copy_made_in_the_first_stage_is_told_of() -> None:
    model = _model()
    TernaryAfter(model, 4)
    kept = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"all \d ternary layers of the model have quantize=False; set quantize=True"):
        TernaryAfter(kept, 4)


def test_learned_scale_starts_anew_at_the_second_stage() -> None:
    model = _model(method="lsq")
    stages = TernaryAfter(model, 1)
    model[0].weight.data *= 3
    before = model[0].weight_scale.detach().clone()
    stages.step()
    helpers.assert_near(model[0].weight_scale.detach(), 3 * before.double())
    model[0].weight_scale.data *= 2
    stages.step()
    helpers.assert_near(model[0].weight_scale.detach(), 6 * before.double())


def test_weight_decay_goes_off() -> None:
    parameters = list(_model().parameters())
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "weight_decay": 0.3}, {"params": parameters[1:]}])
    schedule = WeightDecayOff(optimizer, 2)
    seen = []
    for _ in range(3):
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
        schedule.step()
    assert seen == [[0.3, 0.01], [0.3, 0.01], [0.0, 0.0]]


def _run(steps: int, stop: int | None, method: str) -> list[torch.Tensor]:
    """Trains, and at ``stop`` goes on from a checkpoint in new objects."""
    model, x, y = _model(method=method), helpers.randn(16, 12), helpers.randn(16, 8, seed=2)

    def make(model: nn.Module) -> tuple:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return optimizer, QuantWarmup(model, 5), TernaryAfter(model, 3), WeightDecayOff(optimizer, 4)

    parts = make(model)
    for step in range(steps):
        if step == stop:
            states = copy.deepcopy([model.state_dict(), *(part.state_dict() for part in parts)])
            model = _model(method=method)
            parts = make(model)
            for part, state in zip((model, *parts), states, strict=True):
                part.load_state_dict(state)
        loss = nn.functional.mse_loss(model(x), y)
        parts[0].zero_grad()
        loss.backward()
        for part in parts:
            part.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("method", ["max", "lsq"])
@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_training_resumes_bit_for_bit(stop: int, method: str) -> None:
    for a, b in zip(_run(8, None, method), _run(8, stop, method), strict=True):
        assert torch.equal(a, b)


def test_bad_arguments_raise() -> None:
    model = _model()
    with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
        QuantWarmup(model, -1)
    with pytest.raises(ValueError, match="steps must be 0 or more, got nan"):
        QuantWarmup(model, math.nan)
    with pytest.raises(ValueError, match="at must be 0 or more, got -2"):
        TernaryAfter(model, -2)
    with pytest.raises(ValueError, match="LBFGS has no weight_decay"):
        WeightDecayOff(torch.optim.LBFGS(model.parameters()), 1)
