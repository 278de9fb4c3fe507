"""What a model with a configuration of transformers says of its ternary layers; transformers is not needed."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from torch import nn

from bittorch import TernaryQuantConfig, quantize_, quantize_model


class Config:
    """What transformers' own does where it matters here."""

    def __init__(self) -> None:
        self.quantization_config: Any = None

    def to_dict(self) -> dict[str, Any]:
        values = copy.deepcopy(self.__dict__)
        found = self.quantization_config
        values["quantization_config"] = found if found is None or isinstance(found, dict) else found.to_dict()
        return values

    def save_pretrained(self, path: str) -> None:
        raise NotImplementedError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def save_pretrained(self, path: str) -> None:
        raise NotImplementedError


CONFIG = TernaryQuantConfig(method="twn", group_size=4)


def record(model: nn.Module) -> Any:
    """As it is written to config.json."""
    return json.loads(json.dumps(model.config.to_dict()))["quantization_config"]


# FIELD N3
def test_record_is_of_the_layers_as_they_are() -> None:
    model = Model()
    quantize_(model, {"first": CONFIG, "last": TernaryQuantConfig()})
    values = record(model)
    assert [TernaryQuantConfig.from_dict(config) for config in values["configs"]] == [CONFIG, TernaryQuantConfig()]
    assert [(layer["name"], layer["config"]) for layer in values["layers"]] == [("first", 0), ("last", 1)]
    before = values["layers"][0]["sample"]
    assert len(before) == 4
    model.first.weight.data += 1
    assert record(model)["layers"][0]["sample"] == pytest.approx([value + 1 for value in before], abs=1e-6)
    model.first.quantize = False
    del model.last
    assert record(model) is None


def test_copies_have_records_of_their_own() -> None:
    dense = Model()
    model = quantize_model(dense, CONFIG)
    assert record(dense) is None
    twin = copy.deepcopy(model)
    twin.last.quantize = False
    assert [len(record(each)["layers"]) for each in (model, twin)] == [2, 1]
    other = Model()
    other.config = copy.deepcopy(model.config)  # of a model that has no ternary layer
    assert record(other) is None


def test_pickled_models_keep_the_names() -> None:
    model = pickle.loads(pickle.dumps(quantize_model(Model(), CONFIG)))
    values = record(model)
    assert [(layer["name"], layer["sample"]) for layer in values["layers"]] == [("first", []), ("last", [])]


def test_record_of_another_method_is_left_alone() -> None:
    model = Model()
    model.config.quantization_config = {"quant_method": "other"}
    quantize_(model, CONFIG)
    assert record(model) == {"quant_method": "other"}


def test_model_inside_another_module() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.own = Model(), nn.Linear(4, 4)

    wrapper = Wrapper()
    quantize_(wrapper, CONFIG)
    assert [layer["name"] for layer in record(wrapper.inner)["layers"]] == ["first", "last"]
