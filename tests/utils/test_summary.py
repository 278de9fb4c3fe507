import pytest
import torch
from torch import nn

import bittorch
from bittorch import TernaryLinear, TernaryQuantConfig
from bittorch.utils import summary
from tests import helpers


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    grouped = TernaryQuantConfig(granularity="group", group_size=16)
    return nn.Sequential(
        nn.Embedding(10, 48), TernaryLinear(48, 32), TernaryLinear(32, 6, bias=False, config=grouped), nn.LayerNorm(6)
    )


def test_summary_counts_codes_bits_error_and_bytes() -> None:
    model = _model()
    first, second = summary(model).layers
    assert (first.name, first.kind, first.shape) == ("1", "TernaryLinear", (32, 48))
    codes, scale = bittorch.ternary_quantize(model[1].weight)
    assert first.negative == pytest.approx((codes == -1).double().mean().item())
    assert first.zero == pytest.approx((codes == 0).double().mean().item())
    assert first.positive == pytest.approx((codes == 1).double().mean().item())
    weight = model[1].weight.detach().double()
    error = (weight - helpers.dense(codes, scale)).square().sum() / weight.square().sum()
    assert first.relative_error == pytest.approx(error.item())
    norm = helpers.dense(codes, scale).square().sum() / weight.square().sum()
    assert first.gain == pytest.approx(norm.sqrt().item())
    assert summary(model).gain == pytest.approx(first.gain * second.gain)
    assert str(summary(model)).endswith(f"product of |Q|/|W|: {first.gain * second.gain:.3g}")
    assert first.bytes == 32 * 12 + 4 * 32 + 4 * 32
    assert first.bits_per_weight == pytest.approx(2 + 32 / 48)
    assert second.bytes == 6 * 8 + 4 * 6 * 2
    assert second.bits_per_weight == pytest.approx(2 + 32 / 16)


def test_summary_of_the_model_adds_up() -> None:
    model = _model()
    found = summary(model)
    assert found.other_bytes == 4 * (10 * 48 + 6 + 6)
    assert found.dense_bytes == sum(4 * p.numel() for p in model.parameters())
    packed = bittorch.export_for_inference(model)
    assert found.bytes == sum(t.numel() * t.element_size() for t in packed.state_dict().values())


def test_summary_of_an_exported_model_is_the_same_but_for_the_error() -> None:
    model = _model()
    trained, packed = summary(model), summary(bittorch.export_for_inference(model))
    assert packed.dense_bytes == trained.dense_bytes
    for a, b in zip(trained.layers, packed.layers, strict=True):
        assert b.kind == "TernaryLinearInference"
        assert b.relative_error is b.gain is packed.gain is None
        assert (a.shape, a.negative, a.zero, a.positive, a.bytes) == (b.shape, b.negative, b.zero, b.positive, b.bytes)


def test_tied_weight_counts_where_it_stays_dense() -> None:
    model = _model()
    head = TernaryLinear(48, 10, bias=False)
    head.weight = model[0].weight
    both = nn.Sequential(model[0], head)
    found = summary(both)
    assert found.other_bytes == 4 * 480
    assert found.dense_bytes == 4 * 480
    assert found.bytes == 4 * 480 + 10 * 12 + 4 * 10


def test_tied_layers_count_once() -> None:
    layers = [TernaryLinear(48, 10), TernaryLinear(48, 10, bias=False)]
    layers[1].weight = layers[0].weight
    model = nn.Sequential(*layers)
    codes = 10 * 12 + 4 * 10
    for found in (summary(model), summary(bittorch.export_for_inference(model))):
        assert [row.bytes for row in found.layers] == [codes + 40, codes]
        assert (found.shared_bytes, found.bytes, found.dense_bytes) == (codes, codes + 40, 4 * 480 + 40)
    layers[1].config = bittorch.TernaryQuantConfig(method="twn")  # codes of its own
    assert summary(model).bytes == 2 * codes + 40


def test_convolution_counts_as_rows_of_filters() -> None:
    model = nn.Sequential(bittorch.TernaryConv2d(3, 8, 3), nn.Flatten())
    for found in (summary(model), summary(bittorch.export_for_inference(model))):
        (row,) = found.layers
        assert row.shape == (8, 27)
        assert row.bytes == 8 * 7 + 4 * 8 + 4 * 8
        assert found.dense_bytes == 4 * (8 * 27 + 8)


def test_layer_without_quantisation_and_shared_layer() -> None:
    layer = TernaryLinear(8, 8)
    found = summary(nn.Sequential(layer, layer, TernaryLinear(8, 8, quantize=False)))
    assert [row.name for row in found.layers] == ["0"]
    assert found.other_bytes == 4 * (64 + 8)


def test_table_names_every_layer() -> None:
    text = str(summary(_model()))
    assert text.splitlines()[1].split()[:2] == ["1", "32x48"]
    assert f"2 ternary layers; {summary(_model()).bytes:,} bytes packed" in text
    assert summary(nn.Sequential()).bytes == 0
    assert "0 ternary layers" in str(summary(nn.ReLU()))


def test_weight_that_is_not_finite_raises() -> None:
    model = _model()
    model[1].weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match="cannot summarise 1: w must be finite"):
        summary(model)
    with pytest.raises(ValueError, match="cannot summarise 1: it is on the meta device"):
        summary(_model().to("meta"))


def test_small_errors_keep_their_digits() -> None:  # FIELD N15
    dense = nn.Sequential(nn.Linear(64, 8))
    found = summary(bittorch.quantize_model(dense, depth=6), dense)
    assert 0 < found.layers[0].relative_error < 1e-4
    assert float(str(found).splitlines()[1].split()[-2]) == pytest.approx(found.layers[0].relative_error, rel=5e-3)
    assert str(summary(_model())).splitlines()[1].split()[-2] == f"{summary(_model()).layers[0].relative_error:.3g}"


def test_packed_reference_has_no_errors_to_give() -> None:
    packed = bittorch.export_for_inference(_model())
    assert summary(packed, packed).layers[0].relative_error is None


def test_transposed_convolutions_and_tables_count_as_their_rows() -> None:
    torch.manual_seed(3)
    dense = nn.ModuleList([nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Embedding(9, 8)])
    model = bittorch.quantize_model(dense, filter_fn=("0", "1"))
    packed = bittorch.utils.summary(bittorch.export_for_inference(model), reference=dense)
    for found in (bittorch.utils.summary(model), packed):
        assert [layer.shape for layer in found.layers] == [(6, 8), (9, 8)]
        for layer, module in zip(found.layers, model, strict=True):
            w, q = module.weight.detach().double(), module.dequantized_weight().double()
            assert layer.relative_error == pytest.approx(float((w - q).square().sum() / w.square().sum()), rel=1e-6)
