"""Qwen3 against transformers, from every place that it can come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

import bittorch  # noqa: E402
from bittorch.models import LanguageModel  # noqa: E402
from bittorch.models.io import FormatError, convert, open_checkpoint  # noqa: E402
from tests import helpers  # noqa: E402
from tests.models.io.gguf_files import write  # noqa: E402

IDS = torch.randint(0, 300, (2, 24), generator=helpers.seeded(3))


def qwen3(**changes: Any) -> Any:
    """Heads are wider than hidden_size / heads, and the embedding is tied."""
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    settings = {**sizes, **heads, "rope_parameters": rope, "tie_word_embeddings": True, **changes}
    torch.manual_seed(1)
    net = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings, eos_token_id=None, bos_token_id=None))
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net.eval()


def assert_alike(found: LanguageModel, net: Any) -> None:
    with torch.inference_mode():
        assert float((found(IDS) - net(IDS).logits).abs().max()) < 1e-4
        theirs = net.generate(IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, IDS.shape[1] :]
    ours = found.stream(IDS.tolist(), max_new_tokens=8, temperature=0.0).run().tokens
    assert ours == theirs.tolist()


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True, "tie_word_embeddings": False}], ids=["tied", "biases"]
)
def test_dense_models_of_every_origin(changes: dict[str, Any], tmp_path: Path) -> None:
    net = qwen3(**changes)
    assert_alike(LanguageModel.from_transformers(net), net)
    net.save_pretrained(tmp_path / "hf")
    found = LanguageModel.from_pretrained(tmp_path / "hf", tokenizer=False)
    assert found.config.architecture == "qwen3"
    assert_alike(found, net)
    convert(tmp_path / "hf", tmp_path / "own", to="bittorch", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(tmp_path / "own", tokenizer=False), net)
    convert(tmp_path / "own", tmp_path / "x.gguf", to="gguf-tq2_0", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(tmp_path / "x.gguf", tokenizer=False), net)


def test_a_file_of_gguf_py(tmp_path: Path) -> None:
    net = qwen3()
    net.save_pretrained(tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as source:
        values = {name: source.dense(name).numpy() for name in source.names}
        extra = {"qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32}
        write(tmp_path / "x.gguf", "qwen3", source.config, "F32", values, extra, without=NO_TOKENS)
    assert_alike(LanguageModel.from_pretrained(tmp_path / "x.gguf", tokenizer=False), net)


NO_TOKENS = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


@pytest.mark.parametrize("to", ["bittorch", "gguf-tq1_0", "compressed-tensors"])
def test_ternary_models_come_back_packed(to: str, tmp_path: Path) -> None:
    net = qwen3(hidden_size=256, intermediate_size=256, head_dim=64)
    bittorch.quantize_(net, bittorch.TernaryQuantConfig(method="twn"), skip="lm_head")
    model = LanguageModel.from_transformers(net)
    with torch.inference_mode():
        assert torch.equal(model(IDS), net(IDS).logits)
    model.save_pretrained(tmp_path / "out", to=to, allow_lossy=True)
    with open_checkpoint(tmp_path / "out") as written:
        assert all(written.info(name).ternary for name in written.names if name.endswith("_proj.weight"))
    with torch.inference_mode():
        again = LanguageModel.from_pretrained(tmp_path / "out", tokenizer=False)(IDS)
        assert float((again - model(IDS)).norm() / model(IDS).norm()) < 1e-2  # scales in float16


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    qwen3().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "use_sliding_window": True}))
    with pytest.raises(FormatError, match=r"use_sliding_window True, which changes"):
        open_checkpoint(tmp_path)
