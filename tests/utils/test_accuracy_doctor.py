import pytest
import torch
from torch import nn

import bittorch
from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig
from bittorch.nn.init import norm_preserving_
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


def _norm(weight: torch.Tensor) -> float:
    return weight.detach().double().square().sum().sqrt().item()


@pytest.mark.parametrize("config", [{"method": m} for m in ("twn", "absmean", "lsq", "ttq")], ids=str)
def test_gains_are_norms_of_what_is_multiplied(config: dict[str, str]) -> None:
    linear, conv = nn.Linear(64, 32), nn.Conv2d(4, 8, 3)
    model = bittorch.quantize_model(nn.Sequential(linear, conv), TernaryQuantConfig(**config))
    doctor = AccuracyDoctor(model)
    assert doctor.check() == []
    assert list(doctor.gains) == ["0", "1"]
    for layer, gain in zip(model, doctor.gains.values(), strict=True):
        assert gain == pytest.approx(_norm(layer.dequantized_weight()) / _norm(layer.weight), rel=1e-5)
        assert abs(gain - 1) > 0.02


def test_product_of_gains_is_found_where_nothing_normalises() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)))
    model = bittorch.quantize_model(dense, TernaryQuantConfig.roadmap())
    doctor = AccuracyDoctor(model)
    (finding,) = doctor.check()
    expected = 1.0
    for layer in model:
        expected *= _norm(layer.dequantized_weight()) / _norm(layer.weight)
    assert (finding.layer, finding.kind) == ("", "gain")
    assert finding.value == pytest.approx(expected, rel=1e-5)
    assert str(finding).startswith(
        f"the model: the product of ||Q|| / ||W|| over its ternary layers is {expected:.3g}, "
    )
    assert AccuracyDoctor(nn.Sequential(*model, nn.LayerNorm(32))).check() == []
    assert AccuracyDoctor(model, gain=4.0).check() == []
    norm_preserving_(model)
    assert doctor.check() == []
    assert list(doctor.gains.values()) == pytest.approx([1.0] * 8, rel=1e-5)
    with torch.no_grad():
        stretch = [_norm(layer.weight) / _norm(plain.weight) for layer, plain in zip(model, dense, strict=True)]
        for layer in model:
            layer.weight.pow_(5)  # heavy tails, as training makes them: one scale per row loses more of the norm
    assert "gain" in {finding.kind for finding in doctor.check()}
    gains = [
        _norm(layer.dequantized_weight()) / _norm(layer.weight) * s for layer, s in zip(model, stretch, strict=True)
    ]
    assert list(doctor.gains.values()) == pytest.approx(gains, rel=1e-5)


def test_rms_keeps_the_product_at_one() -> None:
    doctor = AccuracyDoctor(bittorch.quantize_model(nn.Sequential(nn.Linear(64, 64)), TernaryQuantConfig(scale="rms")))
    assert doctor.check() == []
    assert doctor.gains["0"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("method", ["lsq", "seq"])
def test_stale_learned_scale_is_found(method: str) -> None:
    model = _model(method=method)
    model(helpers.randn(2, 64))
    model[0].weight.data *= 0.1
    model[0].weight.data[:, :4] = 0
    codes = model[0].get_quantized_weight()[0]
    (finding,) = AccuracyDoctor(model).check()
    assert (finding.layer, finding.kind) == ("0", "silent")
    assert finding.value == (codes[:, 4:] == 0).double().mean().item() > 0.95
    assert str(finding).endswith("does not fit its weights, and reset_scale() of the layer makes a new one")
    model[0].reset_scale()
    assert AccuracyDoctor(model).check() == []


def test_small_ternary_share_is_found() -> None:
    model = nn.Sequential(TernaryLinear(8, 8), nn.LayerNorm(8), nn.Linear(8, 9))
    (finding,) = AccuracyDoctor(model).check()
    assert (finding.layer, finding.kind) == ("", "ternary_share")
    assert finding.value == pytest.approx(64 / (64 + 72 + 9))


def test_bad_limits_and_weights_raise() -> None:
    for limits in ({"flips": 0.0}, {"drift": 1.0}, {"stalled": 2.0}, {"gain": 1.0}):
        with pytest.raises(ValueError, match="wanted 0 < flips"):
            AccuracyDoctor(_model(), **limits)
    model = _model()
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="cannot check 0: w must be finite"):
        AccuracyDoctor(model).check()
    with pytest.raises(ValueError, match="cannot check 0: it is on the meta device"):
        AccuracyDoctor(_model().to("meta")).check()
