"""`bittorch bench`."""

from pathlib import Path

import torch

from bittorch.cli.bench import dense_twin
from bittorch.models import LanguageModel
from bittorch.nn import TernaryLinearInference
from tests.cli.conftest import Command

SHORT = ("--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 2)


def test_the_twin_has_the_same_weights_dense(model: Path) -> None:
    packed = LanguageModel.from_pretrained(model, depth=3, activation_bits=None)
    twin = dense_twin(packed, torch.float32)
    assert not any(isinstance(module, TernaryLinearInference) for module in twin.modules())
    assert any(isinstance(module, TernaryLinearInference) for module in packed.modules())
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(twin(tokens), packed(tokens), rtol=1e-4, atol=1e-4)
        half = dense_twin(packed, torch.bfloat16)
        assert half(tokens).dtype == torch.bfloat16
    assert half.frequencies.dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_bench_json_has_both_models(bittorch: Command, model: Path) -> None:
    result = bittorch("bench", "--model", model, "--depth", 2, "--threads", 1, "--json", *SHORT)
    assert result.code == 0, result.err
    told = result.json
    assert set(told["models"]) == {"packed", "dense_bf16"}
    for figures in told["models"].values():
        assert figures["bytes"] > 0
        for phase in ("prefill", "decode"):
            assert figures[f"{phase}_tokens_per_second"] > 0
            assert len(figures["runs"][phase]) == 2
    assert told["ratio"]["decode"] > 0
    assert (told["threads"], told["prompt_tokens"], told["new_tokens"]) == (1, 8, 4)


def test_bench_prints_a_table(bittorch: Command, model: Path) -> None:
    result = bittorch("bench", "--model", model, "--depth", 2, "--no-dense", *SHORT)
    assert result.code == 0
    assert result.out.startswith("model ")
    assert "dense bf16" not in result.out
    assert "8 tokens in, 4 out, medians of 2 runs" in result.out


def test_bench_says_that_nothing_is_packed(bittorch: Command, model: Path) -> None:
    assert "no layer of the model is packed" in bittorch("bench", "--model", model, "--no-dense", *SHORT).err
    packed = bittorch("bench", "--model", model, "--no-dense", "--depth", 2, *SHORT)
    assert "no layer" not in packed.err


def test_bench_refuses_more_tokens_than_fit(bittorch: Command, model: Path) -> None:
    result = bittorch("bench", "--model", model, "--prompt-tokens", 256, "--new-tokens", 64)
    assert result.code == 1
    assert "320 tokens" in result.err
    assert "256" in result.err
