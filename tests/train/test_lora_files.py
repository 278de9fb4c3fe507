"""Adapters in files: they come back bit for bit, and fit one model alone."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bittorch
from bittorch.train import adapter_names, add_adapters, load_adapter, save_adapter, set_adapter
from tests import helpers
from tests.train.test_lora import CONFIGS, masters, outputs, packed, trained


@pytest.mark.parametrize("form", ["beside", "grid", "inside"])
def test_adapters_come_back(form: str, tmp_path: Path) -> None:
    make = masters if form == "inside" else packed
    first, second = make(), make()
    add_adapters(first, form=form, r=3, k=4.0)
    expected = outputs(trained(first))
    save_adapter(first, tmp_path / "task.safetensors")
    assert load_adapter(second, tmp_path / "task.safetensors", "task") == ["0", "2"]
    helpers.assert_same_bits(outputs(second), expected)
    assert adapter_names(second) == ["task"]
    add_adapters(second, "more", form=form)
    with pytest.raises(ValueError, match="name the adapter to save; the model has task, more"):
        save_adapter(second, tmp_path / "again")
    save_adapter(second, tmp_path / "again", "task")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "task.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match="has an adapter 'task' already"):
        load_adapter(second, tmp_path / "again", "task")


def test_the_file_is_an_ordinary_one_and_a_full_disk_an_os_error(file: Path) -> None:
    before, limit = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    (file.parent / "ordinary").touch()
    assert file.stat().st_mode == (file.parent / "ordinary").stat().st_mode
    model = packed()
    add_adapters(model, form="grid")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_adapter(model, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = packed(CONFIGS["groups"])
    add_adapters(model, form="grid", r=3)
    save_adapter(model, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_models_that_it_does_not_fit_stay_as_they_are(file: Path) -> None:
    other = nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 8))
    models = {
        r"2.lora_A must be float32 \('r', 20\).* 20 -> 8, got torch.float32 \(3, 24\)": (
            bittorch.quantize_model(nn.Sequential(packed(CONFIGS["groups"])[0], nn.ReLU(), nn.Linear(20, 8)), depth=1)
        ),
        r"0.lora_B must be float32 \(20, 3\)": bittorch.quantize_model(other, depth=1),
        r"0.lora_scale must be float32 \(24,\).* got torch.float32 \(24, 2\)": packed(),
        "adapter of '0', which is no ternary layer": nn.Sequential(nn.Linear(32, 24)),
        "an adapter 'grid' needs a TernaryLinearInference, but 0 is a TernaryLinear": masters(CONFIGS["groups"]),
    }
    for text, model in models.items():
        before = [type(module) for module in model.modules()]
        with pytest.raises((ValueError, TypeError), match=text):
            load_adapter(model, file)
        assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize(
    ("tensors", "values", "text"),
    [
        (lambda t: t.pop("0.lora_B"), {}, "0.lora_B must be float32 .*, got nothing"),
        (lambda t: t["0.lora_A"].fill_(float("nan")), {}, "0.lora_A holds NaN or Inf"),
        (lambda t: t.update({"0.lora_A": t["0.lora_A"].half()}), {}, "got torch.float16"),
        (lambda t: None, {"version": 2}, "has version 2 and form 'grid'; this bittorch reads version 1"),
        (lambda t: None, {"form": "dora"}, "form 'dora'"),
        (lambda t: None, {"k": {"0": "much"}}, "k of 0 must be a positive number, got 'much'"),
        (lambda t: None, {"k": {}}, "names no layer"),
        (lambda t: None, {"k": None}, "damaged 'bittorch_adapter' metadata"),
        (lambda t: None, {"k": ["0"]}, "damaged 'bittorch_adapter' metadata"),
        (lambda t: None, {"form": ["grid"]}, r"form \['grid'\]"),
        (lambda t: t.update({"9.lora_A": t["0.lora_A"].clone()}), {}, "has 9.lora_A, but .* describe no adapter"),
        (lambda t: None, None, "holds no adapter of bittorch"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_damaged_files(tensors: object, values: dict[str, object] | None, text: str, file: Path) -> None:
    data = file.read_bytes()
    found = load_file(file)
    tensors(found)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    described = {**json.loads(header["bittorch_adapter"]), **(values or {})}
    metadata = {"format": "pt"} if values is None else {"bittorch_adapter": json.dumps(described)}
    save_file(found, file, metadata)
    with pytest.raises(ValueError, match=text):
        load_adapter(packed(CONFIGS["groups"]), file)
    file.write_bytes(data[:100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_adapter(packed(), file)
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        load_adapter(packed(), file.with_name("none"))


def test_switching_costs_nothing_of_the_base(file: Path) -> None:
    model = packed(CONFIGS["groups"])
    bare = outputs(model)
    load_adapter(model, file)
    with torch.no_grad():
        model[0].lora_B["default"] += 1
    assert not torch.equal(outputs(model), bare)
    set_adapter(model, None)
    helpers.assert_same_bits(outputs(model), bare)
