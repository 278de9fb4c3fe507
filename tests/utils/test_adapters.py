"""Adapters of PEFT stay in full precision. The layers here are built as PEFT builds them."""

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryLinear, quantize_
from tests import helpers


class _Lora(nn.Module):
    adapter_layer_names = ("lora_A", "lora_B", "lora_embedding_A")

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class _Other(nn.Module):
    """A tuner whose names do not begin as usual, and the copy of a head that is trained whole."""

    adapter_layer_names = ("small", "modules_to_save")

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(4, 4)
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(4, 4)})


class _ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_down = nn.Linear(4, 2)


def _ternary(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, TernaryLinear)]


def test_adapters_stay_and_the_report_says_so() -> None:  # FIELD T8
    model = nn.ModuleDict({"a": _Lora(nn.Linear(8, 6)), "b": _Other(), "c": _ByName(), "d": nn.Linear(4, 4)})
    report = quantize_(model)
    assert _ternary(model) == ["a.base_layer", "b.modules_to_save.default", "d"]
    left = {layer.name: layer.reason for layer in report.left}
    assert set(left) == {"a.lora_A.default", "a.lora_B.default", "b.small", "c.lora_down"}
    assert set(left.values()) == {"an adapter of PEFT; name it in filter_fn to convert it"}
    assert "an adapter of PEFT" in str(report)
    assert report.linear_share == 1


@pytest.mark.parametrize("filter_fn", ["*", lambda module, name: True, ["a.*"]])
def test_a_filter_that_does_not_name_adapters_leaves_them(filter_fn: object) -> None:  # FIELD T8
    model = nn.ModuleDict({"a": _Lora(nn.Linear(8, 6))})
    quantize_(model, filter_fn=filter_fn)
    assert _ternary(model) == ["a.base_layer"]


def test_a_pattern_that_names_an_adapter_takes_it() -> None:
    model = nn.ModuleDict({"a": _Lora(nn.Linear(8, 6))})
    quantize_(model, filter_fn=["*.lora_A.*", "*.base_layer"])
    assert _ternary(model) == ["a.base_layer", "a.lora_A.default"]


def test_layers_of_peft() -> None:  # FIELD T8
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2))
    quantize_(tuned)
    assert all("lora_" not in name for name in _ternary(tuned))
    assert len(_ternary(tuned)) == 2
    assert tuned(helpers.randn(3, 8)).shape == torch.Size([3, 4])
