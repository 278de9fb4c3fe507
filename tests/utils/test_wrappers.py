"""Models inside torch.compile, weight averaging and checkpointing, and what inference mode would make of tensors."""

import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import bittorch
from bittorch import TernaryLinear, TernaryQuantConfig, export_for_inference, quantize_, quantize_model
from bittorch.utils import AccuracyDoctor, conversion_report, summary
from tests import helpers


def _dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 4)))


def _ternary() -> nn.Sequential:
    model = _dense()
    quantize_(model)
    return model.eval()


def _nested(model: nn.Sequential) -> nn.Sequential:
    model[1] = torch.compile(checkpoint_wrapper(model[1]), backend="eager")
    return model


WRAPPERS = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "average": AveragedModel,
    "nested": _nested,
    "both": lambda m: torch.compile(AveragedModel(_nested(m)), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_export_has_the_names_of_the_inner_model(wrap: object, tmp_path: object) -> None:  # FIELD N8
    plain, x = export_for_inference(_ternary()), helpers.randn(3, 8)
    model, seen = wrap(_ternary()).eval(), []
    packed = export_for_inference(model, skip=lambda name, _: bool(seen.append(name)))
    assert seen == ["0", "1.1"]
    assert packed.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in packed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert torch.equal(packed(x), model(x))
    bittorch.save_ternary_inference_checkpoint(packed, tmp_path / "m.safetensors")
    loaded = bittorch.load_ternary_inference_checkpoint(_dense(), tmp_path / "m.safetensors")
    assert torch.equal(loaded(x), packed(x))
    assert [layer.name for layer in summary(model).layers] == ["0", "1.1"]
    assert AccuracyDoctor(model).check() == []


def test_compiled_in_place_exports() -> None:
    model, x = _ternary(), helpers.randn(3, 8)
    model.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = export_for_inference(model)
    assert torch.equal(packed(x), model(x))
    assert packed._compiled_call_impl is None


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_conversion_has_the_names_of_the_inner_model(wrap: object) -> None:  # FIELD N8
    x, expected = helpers.randn(3, 8), _ternary()
    model = wrap(_dense()).eval()
    copied = quantize_model(model)
    assert torch.equal(copied(x), expected(x))
    assert copied.state_dict().keys() == expected.state_dict().keys()
    assert not torch.equal(model(x), expected(x))
    assert quantize_(model, skip="0").converted == ("1.1",)
    assert quantize_(model, filter_fn="0").converted == ("0",)
    assert torch.equal(model(x), expected(x))
    assert conversion_report(model).linear_share == 1


def test_layer_compiled_alone_is_refused() -> None:  # FIELD N8
    model = _dense()
    model[0] = torch.compile(model[0], backend="eager")
    with pytest.raises(ValueError, match="cannot convert 0: it stands alone in OptimizedModule"):
        quantize_(model)
    assert type(model[1][1]) is nn.Linear
    assert isinstance(quantize_model(model)[0], TernaryLinear)


def test_average_of_a_model_exports_the_average() -> None:  # FIELD N8
    model, x = _ternary(), helpers.randn(3, 8)
    average = AveragedModel(model)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-3)
    average.update_parameters(model)
    assert torch.equal(export_for_inference(average)(x), average(x))
    assert not torch.equal(export_for_inference(average)(x), model(x))


def test_average_inside_a_model_keeps_its_name(tmp_path: object) -> None:  # FIELD N8
    model = nn.ModuleDict({"net": _ternary()})
    model["average"] = AveragedModel(model["net"])
    packed, path = export_for_inference(model), tmp_path / "m.safetensors"
    assert packed["average"].state_dict().keys() >= {"n_averaged", "module.0.weight_packed"}
    assert packed["average"].module[0].name == "average.module.0"
    bittorch.save_ternary_inference_checkpoint(packed, path)
    fresh = nn.ModuleDict({"net": _dense(), "average": AveragedModel(_dense())})
    loaded, x = bittorch.load_ternary_inference_checkpoint(fresh, path), helpers.randn(3, 8)
    assert torch.equal(loaded["average"](x), model["average"](x))


def test_conversion_without_memory() -> None:
    with FakeTensorMode():
        model = _dense()
        quantize_(model)
        assert model(torch.ones(3, 8)).shape == (3, 4)


@pytest.mark.parametrize("depth", [None, 2])
def test_conversion_in_inference_mode_gives_parameters_that_train(depth: int | None) -> None:  # FIELD T18
    model = _dense()
    with torch.inference_mode():
        quantize_(model, TernaryQuantConfig(method="lsq") if depth is None else None, depth=depth)
    assert not any(t.is_inference() for t in model.state_dict().values())
    if depth is None:
        model(helpers.randn(3, 8)).square().sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_export_in_inference_mode_gives_normal_tensors() -> None:  # FIELD T18
    model, x = nn.Sequential(_ternary(), nn.Linear(4, 2)), helpers.randn(3, 8)
    plain = TernaryLinear(4, 2, quantize=False)
    with torch.inference_mode():
        packed = export_for_inference(model)
        converted = quantize_model(_dense(), TernaryQuantConfig(method="lsq"))
        single = [bittorch.export_linear_to_inference(layer) for layer in (model[0][0], plain)]
    assert not any(t.is_inference() for m in (packed, converted, *single) for t in m.state_dict().values())
    packed(x).sum().backward()  # a layer behind the packed ones trains
    assert packed[1].weight.grad is not None
