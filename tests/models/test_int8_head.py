"""A head in int8 rows, against its definition in float64."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.blocks import BlockEmbedding, BlockLinear
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.int8_head import LET_GO, ROWS, Int8Head
from bittorch.models.io import open_checkpoint
from bittorch.models.linear import HalfLinear
from bittorch.nn import TernaryLinearInference
from tests import helpers
from tests.models import tiny
from tests.models.test_load import OWN_HEAD, TIED, dequantized, load, made, random_blocks

ROW_COUNT = LET_GO + ROWS + 3


def assert_defined(head: Int8Head, x: Tensor, weight: Tensor) -> None:
    """Codes round the weight by the measure of its row, and the product is theirs up to the rounding of x."""
    weight, codes, scale = weight.double(), head.codes.double(), head.scale.double()[:, None]
    torch.testing.assert_close(scale, weight.abs().amax(-1, True) / 127, rtol=1e-6, atol=0)
    rounded = codes * scale
    assert ((rounded - weight).abs() <= 0.5001 * scale).all()
    with torch.no_grad():
        y = head(x)
    steps = x.double().abs().amax(-1, True) / 32639
    bound = 0.5 * steps * rounded.abs().sum(-1)
    assert ((y - x.double() @ rounded.T).abs() <= bound + 1e-6 * y.abs()).all()


def nothing() -> None:
    pass


def dense_head(weight: Tensor) -> nn.Linear:
    head = nn.Linear(*weight.shape[::-1], bias=False)
    head.weight = nn.Parameter(weight)
    return head


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "Q6_K", "Q4_1"])
def test_equals_its_definition(kind: str) -> None:
    exact: Any
    if kind.startswith("Q"):
        stored = random_blocks(kind)
        exact, weight = BlockLinear(stored), dequantized(stored)
    else:
        weight = helpers.randn(ROW_COUNT, 32, seed=1).to(getattr(torch, kind))
        exact = dense_head(weight)
    calls: list[int] = []
    head = Int8Head(exact, lambda: calls.append(1))
    x = helpers.randn(5, weight.shape[1], seed=2)
    assert_defined(head, x, weight)
    with torch.no_grad():
        helpers.assert_same_bits(head(x[3:4]), head(x)[3:4])
    assert len(calls) == 2 + len(weight) // LET_GO


def test_rows_that_are_small_or_empty() -> None:
    weight = helpers.randn(6, 64, seed=3)
    weight[1], weight[2], weight[3] = 0, weight[2] * 1e-7, weight[3] * 1e-20
    head = Int8Head(dense_head(weight), nothing)
    assert_defined(head, helpers.randn(2, 64, seed=4), weight)
    assert head.codes.abs().amax(-1).tolist() == [127, 0, 127, 127, 127, 127]


def test_not_a_number_stays_one() -> None:
    weight = helpers.randn(3, 64, seed=5)
    weight[1, 7] = float("nan")
    with torch.no_grad():
        y = Int8Head(dense_head(weight), nothing)(helpers.randn(1, 64, seed=6))
    assert y.isnan().tolist() == [[False, True, False]]


def test_gradients_are_those_of_the_stored_head() -> None:
    exact = dense_head(helpers.randn(9, 64, seed=7))
    x = helpers.randn(2, 64, seed=8).requires_grad_()
    Int8Head(exact, nothing)(x).sum().backward()
    torch.testing.assert_close(x.grad, exact.weight.sum(0).expand(2, -1))


@pytest.mark.parametrize("assign", [False, True])
def test_rows_follow_what_is_loaded(assign: bool) -> None:
    weights = [helpers.randn(9, 64, seed=seed) for seed in (9, 10)]
    head, other = (nn.Sequential(Int8Head(dense_head(weight), nothing)) for weight in weights)
    head = copy.deepcopy(head)
    head.load_state_dict(other.state_dict(), assign=assign)
    assert_defined(head[0], helpers.randn(2, 64, seed=11), weights[1])


def head_of(config: ModelConfig, tensors: dict[str, Any], **options: Any) -> nn.Module:
    return load(config, tensors, **options).lm_head


def test_who_gets_int8_rows() -> None:
    blocks = made(TIED, "tensor", ()) | {EMBEDDING: random_blocks("Q8_0")}
    floats = blocks | {EMBEDDING: dequantized(blocks[EMBEDDING])}
    assert isinstance(head_of(TIED, blocks), Int8Head)
    assert isinstance(head_of(TIED, blocks, head="stored"), BlockLinear)
    assert isinstance(head_of(TIED, blocks, head_depth=4), TernaryLinearInference)
    assert type(head_of(TIED, floats)) is nn.Linear
    halves = floats | {EMBEDDING: floats[EMBEDDING].half()}
    assert type(head_of(TIED, halves)) is HalfLinear
    for tensors in (floats, halves):
        assert isinstance(head_of(TIED, tensors, head="int8"), Int8Head)
    ternary = made(TIED, "tensor", (EMBEDDING,))
    assert not isinstance(head_of(TIED, ternary, head="int8"), Int8Head)


@pytest.mark.parametrize("config", [TIED, OWN_HEAD], ids=["tied", "own head"])
def test_what_is_saved_is_the_stored_head(config: ModelConfig, tmp_path: Any) -> None:
    tensors = made(config, "tensor", ()) | {EMBEDDING: random_blocks("Q6_K")}
    if not config.tie_embeddings:
        tensors[HEAD] = random_blocks("Q4_K", 1)
    model = load(config, tensors)
    assert isinstance(model.embed_tokens, BlockEmbedding)
    model.save_pretrained(tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as found:
        for name in (EMBEDDING, HEAD)[: 2 - config.tie_embeddings]:
            assert found.info(name).type == tensors[name].kind
        assert (HEAD in found.names) != config.tie_embeddings
    again = LanguageModel.from_pretrained(tmp_path / "x", tokenizer=False)
    ids = torch.tensor(tiny.prompts(9))
    with torch.inference_mode():
        helpers.assert_same_bits(again(ids), model(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "int4"}, "head must be auto, int8 or stored, got 'int4'"),
        ({"head": "int8", "head_depth": 4}, "head='int8' and head_depth=4 are two forms of one head"),
    ],
)
def test_refuses_options_that_do_not_go(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadOptions(**options)
    assert dataclasses.replace(LoadOptions(), head="stored").head == "stored"
