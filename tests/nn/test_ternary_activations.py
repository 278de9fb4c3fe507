"""``activation_bits="ternary"``: trits by trits, trained, packed and refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig
from bittorch.nn.ternary_activations import trits_by_trits
from bittorch.ops import reference
from tests.helpers import FLOATS, each, randn, seeded

CONFIGS = {
    "default": {},
    "tensor": {"granularity": "tensor"},
    "groups": {"group_size": 8, "granularity": "group"},
    "learned": {"method": "lsq"},
    "clipped": {"ste": "clipped"},
}


def layer_of(config: dict[str, Any], k: int = 40, n: int = 12, **rest: Any) -> TernaryLinear:
    torch.manual_seed(0)
    return TernaryLinear(k, n, config=TernaryQuantConfig(activation_bits="ternary", **config), **rest)


def ternary_rows(x: Tensor) -> Tensor:
    """Threshold 0.75 of the mean magnitude, the mean of what is kept as the scale, in float64."""
    a = x.double().abs()
    kept = a > 0.75 * a.mean(-1, keepdim=True)
    scale = (a * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    return x.double().sign() * kept * scale


@each(("name", "dtype"), [(name, dtype) for name in CONFIGS for dtype in FLOATS])
def test_trained_packed_and_dense_agree(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    layer, x = layer_of(CONFIGS[name], dtype=dtype), randn(2, 5, 40, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    dense = ternary_rows(x) @ layer.dequantized_weight().double().mT + layer.bias.double()
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(y.double(), dense, rtol=tolerance, atol=tolerance)
    packed = bittorch.export_for_inference(layer)
    assert packed.activation_bits == "ternary"
    for same in (layer.eval()(x), packed(x), trits_by_trits(x, *packed.buffers(), by=reference)):
        assert torch.equal(same, y)
    again = TernaryLinearInference(40, 12, groups=packed.groups, activation_bits="ternary", dtype=dtype)
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again(x), y)
    if dtype == torch.float32:
        path = tmp_path / f"{name}.safetensors"
        bittorch.save_ternary_inference_checkpoint(packed, path)
        assert torch.equal(bittorch.load_ternary_inference_checkpoint(nn.Linear(40, 12), path)(x), y)
    for batch in (x[0], x[1, 2]):  # a token does not depend on its company
        assert torch.equal(packed(batch), y[0] if batch.dim() == 2 else y[1, 2])


@each("name", CONFIGS)
def test_gradients_are_those_of_the_dense_product(name: str) -> None:
    layer, x = layer_of(CONFIGS[name]), randn(7, 40).requires_grad_()
    g = randn(7, 12, seed=1)
    layer(x).backward(g)
    plain = copy.deepcopy(layer)
    plain.config = TernaryQuantConfig(**CONFIGS[name])
    plain.zero_grad()
    given = x.detach().clone().requires_grad_()
    rounded = ternary_rows(x.detach()).float()
    plain(given + (rounded - given).detach()).backward(g)
    torch.testing.assert_close(x.grad, given.grad, rtol=1e-5, atol=1e-6)
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    packed, given = bittorch.export_for_inference(layer), x.detach().clone().requires_grad_()
    packed(given).backward(g)
    torch.testing.assert_close(given.grad, x.grad, rtol=1e-5, atol=1e-6)


def test_plain_torch_autocast_and_warm_up() -> None:
    layer, x = layer_of({}), randn(3, 40)
    plain = layer_of({}, backend="python")
    assert torch.equal(plain(x), layer(x))
    assert torch.equal(layer_of({}, backend="python").double()(x.double()).float(), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert torch.equal(bittorch.export_for_inference(layer)(x), y)
    assert y.dtype == torch.bfloat16
    layer.quant_lambda = 0.5
    half = (x + ternary_rows(x).float()) / 2 @ ((layer.weight + layer.dequantized_weight()) / 2).mT + layer.bias
    torch.testing.assert_close(layer(x), half, rtol=1e-5, atol=1e-5)


def test_a_model_converts_trains_and_stays_itself_when_packed() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 4))
    bittorch.quantize_(model, TernaryQuantConfig(activation_bits="ternary"))
    assert "activation_bits=ternary" in repr(model[0])
    x = torch.randn(128, 16, generator=seeded(2))
    labels = (x[:, :4]).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    packed = bittorch.export_for_inference(model)
    assert torch.equal(packed(x), model.eval()(x))
    assert len(bittorch.utils.summary(packed).layers) == 2
    norm = nn.RMSNorm(16)
    assert torch.equal(packed[0](x, norm), packed[0](norm(x)))


def test_rows_of_zeros_and_empty_batches() -> None:
    packed = bittorch.export_for_inference(layer_of({}))
    assert torch.equal(packed(torch.zeros(2, 40)), packed.bias.expand(2, -1))
    assert packed(torch.zeros(0, 40)).shape == (0, 12)
    assert packed(torch.full((40,), torch.nan)).isnan().all()
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(TypeError, match="must be"):
            packed(torch.zeros(2, 40, dtype=dtype))
    assert packed.to("meta")(torch.zeros(2, 40, device="meta")).shape == (2, 12)


CONFIG = TernaryQuantConfig(activation_bits="ternary")


@each(
    ("call", "message"),
    [
        (lambda: bittorch.TernaryConv2d(4, 4, 3, config=CONFIG), "a TernaryConv2d has no activation_bits='ternary'"),
        (lambda: bittorch.TernaryConv2dInference(4, 4, 3, activation_bits="ternary"), "TernaryConv2dInference has no"),
        (lambda: TernaryLinearInference(8, 4, activation_bits="ternary", depth=2), "of depth 2 has no"),
        (lambda: bittorch.quantize_model(nn.Sequential(nn.Linear(8, 4)), CONFIG, depth=2), "of depth 2 has no"),
        (lambda: TernaryLinear(8, 4, activation_bits="trits"), "one of None, 8, 16, 24, 'ternary', got 'trits'"),
        (lambda: TernaryQuantConfig(method="ttq", activation_bits="ternary"), "takes floating activations"),
    ],
    ids=lambda case: str(case[1]),
)
def test_what_has_no_such_product_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_with_convolutions_is_refused_unchanged() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="TernaryConv2d has no activation_bits='ternary'"):
        bittorch.quantize_(model, CONFIG)
    assert type(model[0]) is nn.Linear


def test_adapters_on_codes_train_and_merge() -> None:
    model = nn.Sequential(bittorch.export_for_inference(layer_of({})))
    x = randn(3, 40)
    bittorch.train.add_adapters(model, r=2, form="grid")
    y = model(x)
    y.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    bittorch.train.merge_adapters(model)
    assert model[0].activation_bits == "ternary"
    assert torch.equal(model(x), y)


def test_onnx_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import bittorch.onnx

    packed = bittorch.export_for_inference(nn.Sequential(layer_of({})))
    with pytest.raises(ValueError, match="an ONNX file, for 0, has no activation_bits='ternary'"):
        bittorch.onnx.export(packed, randn(1, 40), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
