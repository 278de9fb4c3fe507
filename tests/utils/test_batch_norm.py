"""Batch norms folded into packed layers, against float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

import bittorch
from bittorch import TernaryConv2d, TernaryLinear, TernaryQuantConfig, export_for_inference
from bittorch.quant import unpack_trit_planes
from bittorch.utils import fold_batch_norm_
from bittorch.utils.batch_norm import FoldedBatchNorm
from tests import helpers

CONFIGS = {
    "tensor": {"per_channel": False},
    "channel": {},
    "group": {"granularity": "group", "group_size": 12},
    "lsq": {"method": "lsq"},
    "seq": {"method": "seq", "per_channel": False},
    "int8": {"activation_bits": 8},
}


class _Net(nn.Module):
    """A residual net, as torchvision builds them: no Sequential around convolutions and norms."""

    def __init__(self, config: TernaryQuantConfig | None = None, bias: bool = False) -> None:
        super().__init__()
        self.conv1 = TernaryConv2d(4, 8, 3, padding=1, bias=bias, config=config)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = TernaryConv2d(8, 8, 3, padding=1, bias=not bias, config=config)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.fc = nn.Sequential(TernaryLinear(8, 12, config=config), nn.BatchNorm1d(12), nn.ReLU())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x + self.bn2(self.conv2(x))
        return self.head(self.fc(x.mean((2, 3))))


def _settled(model: nn.Module) -> nn.Module:
    """With statistics and weights of batch norms as training leaves them, some of them negative."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def _net(**config: object) -> _Net:
    torch.manual_seed(0)
    if config.get("granularity") == "group":  # 8 columns of the linear layer
        config = {**config, "group_size": 4}
    return _settled(_Net(TernaryQuantConfig(**config)))


def _dense(layer: nn.Module) -> Tensor:
    return unpack_trit_planes(layer.weight_packed, layer.scale, 1, layer.columns, torch.float64)


PAIRS = [("conv1", "bn1"), ("conv2", "bn2"), ("fc.0", "fc.1")]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_folded_model_computes_the_same(config: dict[str, object]) -> None:  # FIELD T3
    model, x = _net(**config), helpers.randn(5, 4, 6, 6)
    packed = export_for_inference(model)
    codes = {name: t.clone() for name, t in packed.state_dict().items() if name.endswith("weight_packed")}
    expected = packed(x)
    assert fold_batch_norm_(packed) == PAIRS
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in packed.modules())
    # int8 activations behind the first layer may round otherwise; each layer alone is held to float64 below
    helpers.assert_near(packed(x), expected, 2e-2 if config.get("activation_bits") else 3e-6)
    assert all(torch.equal(t, codes[name]) for name, t in packed.state_dict().items() if name in codes)
    assert fold_batch_norm_(packed) == []


@helpers.each("config", CONFIGS.values(), ids=list(CONFIGS))
@helpers.each("kind", ["conv", "linear"])
@helpers.each("bias", [True, False])
def test_scale_and_bias_are_those_of_float64(kind: str, config: dict[str, object], bias: bool) -> None:  # FIELD T3
    torch.manual_seed(1)
    settings = TernaryQuantConfig(**config)
    layer = (
        TernaryConv2d(4, 8, 3, bias=bias, config=settings)
        if kind == "conv"
        else TernaryLinear(36, 8, bias, config=settings)
    )
    norm = nn.BatchNorm2d(8) if kind == "conv" else nn.BatchNorm1d(8)
    packed = export_for_inference(_settled(nn.Sequential(layer, norm)))
    dense = _dense(packed[0])
    factor = packed[1].weight.double() / (packed[1].running_var.double() + packed[1].eps).sqrt()
    start = packed[0].bias.double() if bias else 0.0
    shift = (start - packed[1].running_mean.double()) * factor + packed[1].bias.double()
    x = helpers.randn(7, 4, 3, 3) if kind == "conv" else helpers.randn(7, 36)
    if config.get("activation_bits"):
        q, scale = bittorch.ops.act_quantize(x.flatten(1), 8)
        exact = (q.double() * scale.double()).view(x.shape)
    else:
        exact = x.double()
    expected = exact.flatten(1) @ (dense * factor[:, None]).T + shift
    fold_batch_norm_(packed)
    actual = packed(x).flatten(1)
    assert (actual.double() - expected).abs().max() <= 2e-6 * expected.abs().max()
    helpers.assert_near(_dense(packed[0]), dense * factor[:, None], 1e-7)


def test_planes_fold_too() -> None:
    torch.manual_seed(0)
    model, x = _settled(nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8))), helpers.randn(5, 32)
    packed = bittorch.quantize_model(model, depth=3)
    expected = packed(x)
    assert fold_batch_norm_(packed) == [("0", "1")]
    helpers.assert_near(packed(x), expected, 1e-6)


def test_layers_that_share_codes_keep_their_own_scales() -> None:
    layers = [TernaryLinear(8, 8, bias=False), TernaryLinear(8, 8, bias=False)]
    layers[1].weight = layers[0].weight
    model = _settled(nn.Sequential(layers[0], nn.BatchNorm1d(8), layers[1]))
    packed, x = export_for_inference(model), helpers.randn(3, 8)
    expected = packed(x)
    fold_batch_norm_(packed)
    assert packed[0].weight_packed is packed[2].weight_packed
    helpers.assert_near(packed(x), expected, 1e-6)


class _Uses(nn.Module):
    """A norm after a layer whose output someone else takes too, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = TernaryLinear(8, 8), TernaryLinear(8, 8)
        self.norm_a, self.norm_b = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.norm_a(y) + y + self.norm_b(self.b(self.b(x)))


def test_what_is_used_twice_is_not_folded() -> None:
    packed, x = export_for_inference(_settled(_Uses())), helpers.randn(3, 8)
    expected = packed(x)
    assert fold_batch_norm_(packed) == []
    assert torch.equal(packed(x), expected)


def test_inputs_of_three_dimensions_are_refused_behind_a_linear_layer() -> None:
    packed = export_for_inference(_settled(nn.Sequential(TernaryLinear(8, 6), nn.BatchNorm1d(6))))
    packed(torch.ones(2, 6, 8))  # normalises the second dimension
    fold_batch_norm_(packed)
    with pytest.raises(AssertionError, match=r"takes inputs \(samples, features\)"):
        packed(torch.ones(2, 6, 8))


class _Branches(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_model_that_cannot_be_traced_needs_names() -> None:
    model, x = _settled(_Branches(TernaryQuantConfig())), helpers.randn(3, 4, 6, 6)
    packed = export_for_inference(model)
    with pytest.raises(ValueError, match="cannot be traced, so its batch norms must be named"):
        fold_batch_norm_(packed)
    expected = packed(x)
    assert fold_batch_norm_(packed, {"conv1": "bn1", "fc.0": "fc.1"}) == [PAIRS[0], PAIRS[2]]
    helpers.assert_near(packed(x), expected, 3e-6)
    assert isinstance(packed.bn1, FoldedBatchNorm)
    assert isinstance(packed.bn2, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.bn1.train(), ValueError, "bn1 is in training mode"),
        (
            lambda m: setattr(m, "bn1", nn.BatchNorm2d(8, track_running_stats=False).eval()),
            ValueError,
            "keeps no running",
        ),
        (lambda m: m.bn1.running_mean.fill_(torch.nan), ValueError, "bn1 has statistics .* not finite"),
        (lambda m: m.bn1.register_forward_hook(lambda *_: None), ValueError, "has forward hooks"),
    ],
    ids=["training", "no statistics", "NaN", "hooks"],
)
def test_norms_that_cannot_be_folded_are_named(change: object, error: type, message: str) -> None:
    packed = export_for_inference(_net())
    change(packed)
    with pytest.raises(error, match=message):
        fold_batch_norm_(packed)
    assert isinstance(packed.bn1, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ({"conv1": "bn"}, AttributeError, "bn"),
        ({"conv1": "head"}, TypeError, "head is a Linear, and no batch norm"),
        ({"conv1": "fc.1"}, TypeError, "fc.1 is a BatchNorm1d, and no batch norm that can follow conv1"),
        ({"head": "fc.1"}, TypeError, "head is a Linear and not packed; export the model first"),
    ],
    ids=str,
)
def test_wrong_pairs_are_refused(pairs: dict[str, str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        fold_batch_norm_(export_for_inference(_net()), pairs)


def test_norm_behind_two_layers_is_refused_before_anything_changes() -> None:
    model = nn.ModuleDict({"a": TernaryLinear(8, 4), "b": TernaryLinear(8, 4), "norm": nn.BatchNorm1d(4)})
    packed = export_for_inference(model)
    with pytest.raises(ValueError, match="norm is named behind a and b, but one layer alone can take it"):
        fold_batch_norm_(packed, {"a": "norm", "b": "norm"})
    assert isinstance(packed["norm"], nn.BatchNorm1d)
    assert fold_batch_norm_(packed, {"a": "norm"}) == [("a", "norm")]


def test_folded_model_is_saved_and_loaded(tmp_path: object) -> None:
    packed, x = export_for_inference(_net()), helpers.randn(3, 4, 6, 6)
    fold_batch_norm_(packed)
    bittorch.save_ternary_inference_checkpoint(packed, tmp_path / "m.safetensors")
    for model in (_Net(), _Net(bias=True), packed):
        loaded = bittorch.load_ternary_inference_checkpoint(model, tmp_path / "m.safetensors")
        assert torch.equal(loaded(x), packed(x))
        assert isinstance(loaded.bn1, FoldedBatchNorm)
    other = _Net()
    other.bn1 = nn.BatchNorm2d(9)
    with pytest.raises(ValueError, match=r"'bn1' is a batch norm of 8 channels.* has BatchNorm2d"):
        bittorch.load_ternary_inference_checkpoint(other, tmp_path / "m.safetensors")


@pytest.mark.parametrize("fuse", [fusion.fuse_conv_bn_eval, fusion.fuse_linear_bn_eval])
def test_functions_of_torch_are_refused(fuse: object) -> None:  # FIELD T3
    conv = fuse is fusion.fuse_conv_bn_eval
    norm = (nn.BatchNorm2d(4) if conv else nn.BatchNorm1d(4)).eval()
    for config in CONFIGS.values():
        settings = TernaryQuantConfig(**config)
        layer = TernaryConv2d(4, 4, 3, config=settings) if conv else TernaryLinear(36, 4, config=settings)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(TypeError, match=rf"{fuse.__name__} multiplies the weight of .*fold_batch_norm_\(packed\)"):
            fuse(layer.eval(), norm)
        assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    layer.quantize = False
    fuse(layer, norm)
    with pytest.raises(RuntimeError, match=r"the values of .*\.weight are read"):
        fuse(export_for_inference(nn.Sequential(type(layer)(4, 4, 3) if conv else TernaryLinear(36, 4)))[0], norm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=helpers.dtype_id)
def test_half_precision_and_compiled_models(dtype: torch.dtype) -> None:
    packed, x = export_for_inference(_net().to(dtype)), helpers.randn(3, 4, 6, 6, dtype=dtype)
    exact = copy.deepcopy(packed).float()(x.float())
    fold_batch_norm_(packed)
    y = packed(x)
    assert y.dtype == dtype
    helpers.assert_near(y, exact, 2e-2 if dtype == torch.bfloat16 else 4e-3)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), y)


def test_norms_behind_other_convolutions_fold_and_tables_are_left() -> None:
    torch.manual_seed(5)
    for model, x in (
        (nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), torch.randn(3, 4, 9)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6)), torch.randn(3, 4, 5, 5)),
    ):
        bittorch.quantize_(model)
        packed = bittorch.export_for_inference(_settled(model))
        expected = packed(x)
        assert bittorch.utils.fold_batch_norm_(packed) == [("0", "1")]
        torch.testing.assert_close(packed(x), expected)
    model = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    bittorch.quantize_(model, filter_fn=("0", "2"))
    packed = bittorch.export_for_inference(model.eval())
    assert bittorch.utils.fold_batch_norm_(packed) == []
    with pytest.raises(TypeError, match="no batch norm that can follow 0"):
        bittorch.utils.fold_batch_norm_(packed, {"0": "1"})
