import pytest
import torch
from torch import nn

from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.utils import AccuracyDoctor
from tests import helpers


def _model(dtype: torch.dtype = torch.float32, **config: object) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [TernaryLinear(64, 32, config=TernaryQuantConfig(**config), dtype=dtype) for _ in range(2)]
    layers[1] = TernaryLinear(32, 8, config=TernaryQuantConfig(**config), dtype=dtype)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _kinds(doctor: AccuracyDoctor) -> list[tuple[str, str]]:
    return [(finding.layer, finding.kind) for finding in doctor.check()]


def test_nothing_is_found_in_healthy_training() -> None:
    model = _model()
    doctor = AccuracyDoctor(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = helpers.randn(64, 64), helpers.randn(64, 8, seed=2)
    for _ in range(5):
        nn.functional.mse_loss(model(x), y).backward()
        assert doctor.check() == []
        optimizer.step()


def test_scale_by_the_largest_weight_is_found() -> None:
    assert _kinds(AccuracyDoctor(_model(scale="max"))) == [("0", "scale_rule"), ("2", "scale_rule")]


def test_dead_rows_are_counted() -> None:
    model = _model()
    model[2].weight.data[3:5] = 0
    (finding,) = AccuracyDoctor(model).check()
    assert (finding.layer, finding.kind, finding.value) == ("2", "dead_rows", 2)
    assert str(finding) == "2: 2 of 8 rows hold no code but 0"


def test_flip_rate_is_the_share_since_the_last_check() -> None:
    model = _model()
    doctor = AccuracyDoctor(model, flips=0.2)
    assert doctor.check() == []
    model[0].weight.data[:16].neg_()  # about half of the codes: those that are not 0
    (finding,) = doctor.check()
    assert (finding.layer, finding.kind) == ("0", "flip_rate")
    codes = (model[0].dequantized_weight()[:16] != 0).sum() / model[0].weight.numel()
    assert finding.value == pytest.approx(codes.item())
    assert doctor.check() == []


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_scale_drift_is_since_the_first_check(factor: float) -> None:
    model = _model()
    doctor = AccuracyDoctor(model)
    doctor.check()
    for _ in range(2):
        model[2].weight.data *= factor**0.5
        found = doctor.check()
    (finding,) = found
    assert (finding.layer, finding.kind) == ("2", "scale_drift")
    assert finding.value == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=helpers.dtype_id)
def test_stalled_half_precision_master_is_found(dtype: torch.dtype) -> None:
    model = _model(dtype)
    doctor = AccuracyDoctor(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-7)
    for turn in range(2):
        optimizer.zero_grad()
        model(helpers.randn(4, 64, dtype=dtype)).float().square().mean().backward()
        found = [(finding.layer, finding.kind) for finding in doctor.check()]
        optimizer.step()
        assert found == ([("0", "stalled"), ("2", "stalled")] if turn else [])


def test_master_that_moves_and_float32_master_are_not_stalled() -> None:
    for dtype, rate in ((torch.bfloat16, 0.05), (torch.float32, 1e-12)):
        model = _model(dtype)
        doctor = AccuracyDoctor(model)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(2):
            optimizer.zero_grad()
            model(helpers.randn(4, 64, dtype=dtype)).float().square().mean().backward()
            optimizer.step()
            assert "stalled" not in {finding.kind for finding in doctor.check()}


def test_convolutions_are_looked_at() -> None:
    model = TernaryConv2d(3, 8, 3, config=TernaryQuantConfig(scale="max"))
    model.weight.data[2] = 0
    assert _kinds(AccuracyDoctor(model)) == [("", "scale_rule"), ("", "dead_rows")]


def test_layers_that_are_not_quantised_are_left_out() -> None:
    model = nn.Sequential(TernaryLinear(8, 8, quantize=False, config=TernaryQuantConfig(scale="max")), nn.Linear(8, 8))
    assert AccuracyDoctor(model).check() == []


def test_bad_limits_and_weights_raise() -> None:
    for limits in ({"flips": 0.0}, {"drift": 1.0}, {"stalled": 2.0}):
        with pytest.raises(ValueError, match="wanted 0 < flips"):
            AccuracyDoctor(_model(), **limits)
    model = _model()
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="cannot check 0: w must be finite"):
        AccuracyDoctor(model).check()
    with pytest.raises(ValueError, match="cannot check 0: it is on the meta device"):
        AccuracyDoctor(_model().to("meta")).check()
