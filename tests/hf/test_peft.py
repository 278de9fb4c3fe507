"""PEFT on ternary layers: adapters beside them, adapters that merge bit for bit, their files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bittorch
from bittorch import TernaryLinear, TernaryLinearInference, TernaryQuantConfig
from bittorch.train import add_adapters
from tests import helpers

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import bittorch.hf.peft as ours  # noqa: E402

X = helpers.randn(5, 32)
BASES = ("packed", "groups A8", "masters", "lsq")


def base(kind: str = "packed") -> nn.Module:
    torch.manual_seed(0)
    config = {
        "groups A8": TernaryQuantConfig(group_size=16, activation_bits=8),
        "lsq": TernaryQuantConfig(method="lsq"),
    }.get(kind, TernaryQuantConfig(method="twn"))
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    bittorch.quantize_(model, config, skip="2")
    model(X).sum().backward()
    return model if kind in ("masters", "lsq") else bittorch.export_for_inference(model.eval())


def tuned(model: nn.Module, exact: bool, steps: int = 6, **options: object) -> nn.Module:
    options = {"r": 4, "lora_alpha": 32, "target_modules": ["0"], **options}
    model = peft.get_peft_model(copy.deepcopy(model), ours.register(peft.LoraConfig(**options), exact=exact))
    return train(model, steps)


def train(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    target = helpers.randn(5, 8, seed=4)
    for _ in range(steps):
        loss = nn.functional.mse_loss(model.train()(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(X)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("exact", [False, True])
def test_adapters_begin_with_nothing_train_and_come_back(kind: str, exact: bool, tmp_path: Path) -> None:
    model = base(kind)
    bare = outputs(model)
    helpers.assert_same_bits(outputs(tuned(model, exact, steps=0)), bare)
    adapted = tuned(model, exact)
    expected = outputs(adapted)
    assert not torch.equal(expected, bare)
    with adapted.disable_adapter():
        helpers.assert_same_bits(outputs(adapted), bare)
    adapted.save_pretrained(tmp_path / "tasks" / "one")
    again = ours.load(copy.deepcopy(model), tmp_path / "tasks", subfolder="one")
    helpers.assert_same_bits(outputs(again), expected)
    assert isinstance(again.base_model.model[0], ours.TernaryLoraExact if exact else ours.TernaryLora)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    helpers.assert_same_bits(outputs(again.unload()), bare)


@pytest.mark.parametrize("kind", BASES)
def test_exact_adapters_merge_bit_for_bit(kind: str) -> None:
    model = base(kind)
    adapted = tuned(model, exact=True)
    expected, bare = outputs(adapted), outputs(model)
    adapted.merge_adapter()
    helpers.assert_same_bits(outputs(adapted), expected)
    with pytest.warns(UserWarning, match="already merged"):
        adapted.merge_adapter()  # once more changes nothing
    helpers.assert_same_bits(outputs(adapted), expected)
    adapted.unmerge_adapter()
    helpers.assert_same_bits(outputs(adapted), expected)
    with adapted.disable_adapter():
        helpers.assert_same_bits(outputs(adapted), bare)
    merged = adapted.merge_and_unload(safe_merge=True)
    assert type(merged[0]) in (TernaryLinear, TernaryLinearInference)
    helpers.assert_same_bits(outputs(merged), expected)
    if kind in ("masters", "lsq"):
        helpers.assert_same_bits(outputs(bittorch.export_for_inference(merged)), expected)
        with pytest.raises(ValueError, match=r"adapter inside its quantiser; call merge_and_unload\(\)"):
            bittorch.export_for_inference(tuned(model, exact=True))


def test_the_formulas_are_those_of_add_adapters() -> None:
    for kind, form in (("packed", "grid"), ("masters", "inside"), ("packed", "beside")):
        adapted = tuned(base(kind), exact=form != "beside")
        layer = adapted.base_model.model[0]
        model = base(kind)
        add_adapters(model, form=form, r=4, k=32 / 4, filter_fn="0")
        model[0].lora_A["default"].data = layer.lora_A["default"].weight.detach().clone()
        model[0].lora_B["default"].data = layer.lora_B["default"].weight.detach().clone()
        if form == "grid":
            model[0].lora_scale["default"].data = layer.lora_ternary_scale["default"].detach().clone()
        helpers.assert_near(outputs(adapted), outputs(model).double(), 1e-6)


@pytest.mark.parametrize("kind", ["packed", "masters"])
def test_beside_never_merges_and_has_dora(kind: str, tmp_path: Path) -> None:
    model = base(kind)
    for options in ({}, {"use_dora": True}, {"lora_dropout": 0.1}):
        adapted = tuned(model, exact=False, **options)
        expected = outputs(adapted)
        for merge in (adapted.merge_and_unload, adapted.merge_adapter):
            with pytest.raises(TypeError, match=r"has no exact merged form.* exact=True\), which merges bit for bit"):
                merge()
        helpers.assert_same_bits(outputs(adapted), expected)
        adapted.save_pretrained(tmp_path)
        helpers.assert_near(outputs(ours.load(copy.deepcopy(model), tmp_path)), expected.double(), 1e-6)


def test_dora_of_a_packed_layer_is_that_of_its_dense_weight() -> None:
    adapted = tuned(base(), exact=False, use_dora=True)
    layer = adapted.base_model.model[0]
    weight = layer.base_layer.dequantized_weight().double()
    changed = weight + layer.get_delta_weight("default").detach().double()
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
    dense = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
    expected = nn.functional.linear(X.double(), dense, layer.base_layer.bias.double())
    with torch.no_grad():
        helpers.assert_near(layer(X), expected)


def test_several_adapters_switch_and_one_merges(tmp_path: Path) -> None:
    model = base()
    first, second = (tuned(model, exact=True, steps=steps, r=r) for steps, r in ((6, 4), (12, 2)))
    expected = {"one": outputs(first), "two": outputs(second)}
    first.save_pretrained(tmp_path / "one")
    second.save_pretrained(tmp_path / "two")
    both = ours.load(copy.deepcopy(model), tmp_path / "one", "one")
    both = ours.load(both, tmp_path / "two", "two")
    for name in ("two", "one", "two"):
        both.set_adapter(name)
        helpers.assert_same_bits(outputs(both), expected[name])
    both.base_model.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match="used one at a time; got one, two"):
        both(X)
    both.set_adapter("two")
    with pytest.raises(ValueError, match="a batch cannot mix them"):
        both.base_model.model[0](X, adapter_names=["one"] * len(X))
    both.merge_adapter(["one"])
    with (
        pytest.raises(ValueError, match="used one at a time; got one, two"),
        pytest.warns(UserWarning, match="additionally merging"),
    ):
        both.merge_adapter(["two"])
    both.unmerge_adapter()
    helpers.assert_same_bits(outputs(both.merge_and_unload(adapter_names=["one"])), expected["one"])


def test_bad_configurations(tmp_path: Path) -> None:
    model = base()
    planes = bittorch.quantize_model(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8)), skip="1", depth=2)
    cases = [
        (model, {"lora_dropout": 0.1}, True, "no lora_dropout and no lora_bias"),
        (model, {"use_dora": True}, True, "unsupported variant"),
        (model, {"init_lora_weights": "pissa"}, False, "init_lora_weights='pissa' changes the weight of the base"),
        (planes, {}, True, "TernaryLinearInference has depth=2; use 'beside'"),
    ]
    for given, options, exact, text in cases:
        with pytest.raises(ValueError, match=text):
            tuned(given, exact, steps=0, **options)
    with pytest.raises(ValueError, match="'all-linear' would leave ternary layers out"):
        tuned(model, exact=False, target_modules="all-linear")
    with pytest.raises(TypeError, match=r"must be a peft.LoraConfig, got LoHaConfig"):
        ours.register(peft.LoHaConfig())
    beside, exact = tuned(model, exact=False), tuned(model, exact=True)
    beside.save_pretrained(tmp_path / "beside")
    exact.save_pretrained(tmp_path / "exact")
    for adapted, other in ((beside, "exact"), (exact, "beside")):
        with pytest.raises(ValueError, match=r"merge exactly, and .* holds one that"):
            ours.load(adapted, tmp_path / other, "other")
    wide = bittorch.export_for_inference(nn.Sequential(TernaryLinear(48, 32), nn.Linear(32, 8)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        ours.load(wide, tmp_path / "exact")
    assert "_custom_modules" not in json.loads((tmp_path / "exact" / "adapter_config.json").read_text())
    with pytest.raises(ValueError, match="is not supported"):  # what load is for
        peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "exact"))


def test_halves_keep_what_merges(tmp_path: Path) -> None:
    adapted = tuned(base(), exact=True).to(torch.bfloat16)
    x = X.bfloat16()
    with torch.no_grad():
        expected = adapted(x)
        assert adapted.base_model.model[0].base_layer.scale.dtype == torch.float32
        helpers.assert_same_bits(adapted.merge_and_unload()(x), expected)
