"""What quantize_ says of a model: shares, and what stays dense and why."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinear, TernaryQuantConfig, quantize_, quantize_model
from bittorch.utils import ConversionReport, conversion_report


class Experts(nn.Module):
    """The fused weights of experts, as transformers keeps them."""

    def __init__(self, experts: int = 4, width: int = 8) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * width, width))
        self.down = nn.Parameter(torch.randn(experts, width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down[0].T


class Conv1D(nn.Module):
    """The transposed linear layer of GPT-2."""

    def __init__(self, out: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, out)), nn.Parameter(torch.zeros(out))


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


KINDS = {
    "subclass": (Doubled(8, 8), "Doubled", 72, "a subclass, which may compute something else"),
    "conv3d": (nn.Conv3d(8, 8, 1), "Conv3d", 72, "this kind of layer has no ternary form"),
    "lstm": (nn.LSTM(8, 8), "LSTM", 576, "this kind of layer has no ternary form"),
    "attention": (nn.MultiheadAttention(8, 2), "MultiheadAttention", 216, "this kind of layer has no ternary form"),
    "experts": (Experts(), "Experts", 768, "weights of several dimensions (fused experts) have no ternary form"),
    "gpt2": (Conv1D(8, 8), "Conv1D", 72, "the transposed linear layer of GPT-2 has no ternary form"),
    "weight norm": (
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        "ParametrizationList",
        72,
        "a parametrised weight",
    ),
}


@pytest.mark.parametrize(("module", "kind", "parameters", "reason"), KINDS.values(), ids=list(KINDS))
def test_what_cannot_become_ternary_is_reported(  # FIELD T6, FIELD N2
    module: nn.Module, kind: str, parameters: int, reason: str
) -> None:
    model = nn.Sequential(module, nn.Linear(4, 4))
    with pytest.warns(
        UserWarning, match=r"only \d+\.\d% of the weights that multiply activations are ternary"
    ) as caught:
        report = quantize_(model)
    assert caught[0].filename == __file__
    left = {layer.kind: layer for layer in report.left}
    assert (left[kind].parameters, left[kind].reason) == (parameters, reason)
    assert left[kind].multiplies
    assert not left[kind].wanted
    assert f"{kind}, {parameters} parameters: {reason}" in str(caught[0].message)
    assert f"{reason}: 0" in str(report)


def _model() -> nn.ModuleDict:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(10, 8),
            "up": nn.Linear(8, 16),
            "norm": nn.LayerNorm(16),
            "head": nn.Linear(16, 10, False),
        }
    )
    return model


def test_shares_and_reasons() -> None:  # FIELD N2
    report = quantize_(_model(), skip="head")
    assert isinstance(report, ConversionReport)
    assert report.converted == ("up",)
    assert (report.ternary, report.parameters) == (128, 80 + 128 + 16 + 32 + 160)
    assert report.share == 128 / 416
    assert report.linear_share == 1
    reasons = {layer.name: (layer.reason, layer.wanted, layer.multiplies) for layer in report.left}
    assert reasons == {
        "embed": ("a table to look up, which multiplies nothing; quantize_ takes it by name", False, False),
        "norm": ("vectors: norms, biases, scales", False, False),
        "head": ("skip names it", True, True),
    }
    assert repr(report) == str(report)
    lines = str(report).splitlines()
    assert lines[0].startswith("1 layer became ternary; ternary are 128 of 416 parameters (30.8%)")
    assert lines[2].split() == ["160", "Linear", "skip", "names", "it:", "head"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"filter_fn": "up"}, "filter_fn leaves it"),
        ({"filter_fn": lambda _, name: name == "up"}, "filter_fn leaves it"),
        ({"config": {"up": TernaryQuantConfig()}}, "config has none for it"),
        ({"depth": {"up": 2}}, "depth leaves it"),
    ],
    ids=["pattern", "function", "config", "depth"],
)
def test_what_the_caller_leaves_counts_for_nothing(arguments: dict[str, object], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = quantize_(_model(), **arguments)
    assert report.converted == ("up",)
    assert {layer.name: layer.reason for layer in report.left}["head"] == reason
    assert report.linear_share == 1


def test_copy_warns_as_conversion_in_place_does() -> None:  # FIELD T6
    with pytest.warns(UserWarning, match=r"only 2\.0% of .* Experts, 768 parameters") as caught:
        quantize_model(nn.Sequential(Experts(), nn.Linear(4, 4)))
    assert caught[0].filename == __file__


def test_report_of_a_model_as_it_is() -> None:  # FIELD N2
    model = _model()
    assert conversion_report(model).ternary == 0
    quantize_(model, skip="head")
    packed = bittorch.export_for_inference(model)
    for one in (model, packed):
        report = conversion_report(one)
        assert (report.converted, report.ternary) == ((), 128)
        assert {layer.name: layer.reason for layer in report.left}["head"] == "skip names it"
    assert quantize_(model).ternary == 128 + 160


def test_tied_weights_count_once() -> None:
    model = _model()
    model["head"] = nn.Linear(8, 10, bias=False)
    model["head"].weight = model["embed"].weight
    report = quantize_(model)
    assert (report.ternary, report.parameters) == (128 + 80, 80 + 128 + 16 + 32)
    assert [layer.name for layer in report.left] == ["norm"]


def test_layer_without_quantisation_is_not_ternary() -> None:
    report = conversion_report(nn.Sequential(TernaryLinear(4, 4, quantize=False)))
    assert (report.ternary, report.parameters) == (0, 20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch_dtype")
def test_models_of_transformers() -> None:  # FIELD T6, FIELD N2
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=20, num_key_value_heads=2, num_local_experts=4, **sizes)
    with pytest.warns(UserWarning, match=r"only .*%.* MixtralExperts, .* \(fused experts\)"):
        report = quantize_(transformers.MixtralForCausalLM(config), skip="lm_head")
    assert report.linear_share < 0.3
    small = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with pytest.warns(UserWarning, match=r"only .*%.* Conv1D, .* GPT-2"):
        report = quantize_(transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)))
    assert report.converted == ("lm_head",)
