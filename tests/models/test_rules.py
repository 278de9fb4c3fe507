"""One rule loads and saves: what is not fused equals what was, with a bias on any of the parts alone."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.config import PROJECTIONS
from bittorch.models.decoder import Decoder, tensor_shapes
from bittorch.models.rules import named_tensors
from tests.models import tiny


def logits(config: ModelConfig, tensors: dict[str, Any], ids: Tensor) -> Tensor:
    source = tiny.checkpoint(config, tensors)
    return LanguageModel.from_checkpoint(source, LoadOptions(head_depth=4), tokenizer=False)(ids)


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("ternary", [True, False])
def test_a_bias_of_one_projection_alone(name: str, ternary: bool) -> None:  # FIELD L14
    config = tiny.changed(biases=(name,), hidden_act="silu")
    given = tiny.tensors(config, ternary)
    assert [key.split(".")[-2] for key in given if key.endswith(".bias")] == [name] * config.num_layers
    model = tiny.model(config, ternary)
    found = dict(named_tensors(model))
    assert found.keys() - {"lm_head.weight"} == given.keys()
    for key, value in given.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[key], value), key
    ids = torch.tensor(tiny.prompts(6))
    without = {key: value for key, value in given.items() if not key.endswith(".bias")}
    zero = {key: value * 0 if key.endswith(".bias") else value for key, value in given.items()}
    bare = logits(dataclasses.replace(config, biases=()), without, ids)
    assert torch.equal(logits(config, zero, ids), bare)
    assert not torch.equal(logits(config, given, ids), bare)


def test_a_decoder_without_weights_knows_its_tensors() -> None:
    assert Decoder(tiny.CONFIG).embed_tokens is None
    assert tensor_shapes(tiny.CONFIG).keys() == tiny.tensors(tiny.CONFIG).keys()
    with pytest.raises(ValueError, match="architecture 'gpt' is not known; known are llama, bitnet"):
        tensor_shapes(tiny.changed(architecture="gpt"))


def test_norms_from_one_are_those_of_weights_plus_one() -> None:
    given = tiny.tensors(tiny.CONFIG)
    less = {name: value - 1 if name.endswith("norm.weight") else value for name, value in given.items()}
    config, ids = tiny.changed(norms_from_one=True), torch.tensor(tiny.prompts(6))
    assert torch.allclose(logits(config, less, ids), logits(tiny.CONFIG, given, ids), atol=1e-5)
    model = LanguageModel.from_checkpoint(tiny.checkpoint(config, less), tokenizer=False)
    found = dict(named_tensors(model))
    for name in ("model.norm.weight", "model.layers.1.self_attn.attn_sub_norm.weight"):
        assert torch.equal(found[name], less[name])
