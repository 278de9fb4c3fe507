"""Adapters of PEFT on ternary layers: trained beside them, exported beside them, never merged."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from bittorch import TernaryLinear, TernaryLinearInference, export_for_inference, quantize_
from tests import helpers

peft = pytest.importorskip("peft")

X = helpers.randn(5, 32)


def tuned(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    quantize_(model)
    config = peft.LoraConfig(target_modules=["0", "2"], r=4, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


# FIELD T7
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_merge_is_refused(options: dict[str, bool], copied: object) -> None:
    model = copied(tuned(**options)).eval()
    before = model(X)
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.model[0].merge):
        with pytest.raises(TypeError, match="adds the adapter to the weight of a TernaryLinear, which then has other"):
            merge()
    assert torch.equal(model(X), before)


# FIELD T7
def test_adapters_train_and_stay_apart_at_export() -> None:
    model = tuned()
    base = model.base_model.model[0].base_layer
    assert isinstance(base, TernaryLinear)
    weight = base.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(X).square().mean().backward()
    optimizer.step()
    assert torch.equal(base.weight, weight)
    packed = export_for_inference(model)
    assert isinstance(packed.base_model.model[0].base_layer, TernaryLinearInference)
    assert torch.equal(packed(X), model.eval()(X))
    plain = model.unload()
    assert isinstance(plain[0], TernaryLinear)


def test_dense_layers_merge_as_ever() -> None:
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(32, 8)), peft.LoraConfig(target_modules=["0"], init_lora_weights=False)
    ).eval()
    before = model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        helpers.assert_near(model.merge_and_unload()(X), before.double(), 1e-5)
