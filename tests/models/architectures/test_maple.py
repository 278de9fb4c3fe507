"""Maple against plain torch in float64: transformers has no class for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bittorch.models import LanguageModel
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import FormatError, convert, open_checkpoint
from tests.models.io.gguf_files import NO_TOKENS, write

SLIDING, FULL = "sliding_attention", "full_attention"
SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_layers": 4}
HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rotary_dim": 8, "max_positions": 64}
EXPERTS: dict[str, Any] = {"num_experts": 6, "experts_per_token": 2, "expert_size": 16, "expert_limit": 0.5}
CONFIG = ModelConfig(
    architecture="maple", **SIZES, **HEADS, **EXPERTS, window=3, layer_types=(SLIDING, SLIDING, SLIDING, FULL)
)
ENTRIES = {
    "expert_count": 6,
    "expert_used_count": 2,
    "expert_feed_forward_length": 16,
    "swiglu_clamp_exp": [0.5] * 4,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.sliding_window": 3,
    "attention.sliding_window_pattern": [True, True, True, False],
    "rope.dimension_count": 8,
}
Weights = dict[str, Tensor]


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        name: (rng.standard_normal(shape) * shape[-1] ** -0.5 if len(shape) == 2 else rng.uniform(0.5, 1.5, shape))
        .astype(np.float32)
        for name, shape in tensor_shapes(CONFIG).items()
    }  # fmt: skip


def written(path: Path, **changes: Any) -> Path:
    extra = {f"maple.{key}": value for key, value in {**ENTRIES, **changes}.items()}
    write(path, "maple", CONFIG, "F32", values(), extra, without=NO_TOKENS)
    return path


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Channels i and i + 4 of the first 8, of ``(tokens, heads, 16)``."""
    out = x.clone()
    for position in range(len(x)):
        for i in range(4):
            angle = torch.tensor(position * CONFIG.rope_theta ** (-2 * i / 8), dtype=torch.float64)
            a, b = x[position, :, i], x[position, :, i + 4]
            out[position, :, i] = a * angle.cos() - b * angle.sin()
            out[position, :, i + 4] = b * angle.cos() + a * angle.sin()
    return out


def attention(x: Tensor, w: Weights, at: str, kind: str) -> Tensor:
    q, k, v = ((x @ w[f"{at}.{name}_proj.weight"].T).unflatten(1, (-1, 16)) for name in "qkv")
    q, k = normed(q, w[f"{at}.q_norm.weight"]), normed(k, w[f"{at}.k_norm.weight"])
    if kind == SLIDING:
        q, k = turned(q), turned(k)
    out = torch.zeros_like(q)
    for i in range(len(x)):
        first = max(0, i - 3) if kind == SLIDING else 0
        for head in range(4):
            share = (k[first : i + 1, head // 2] @ q[i, head] / 4).softmax(0)
            out[i, head] = share @ v[first : i + 1, head // 2]
    return out.flatten(1) @ w[f"{at}.o_proj.weight"].T


def experts(x: Tensor, w: Weights, at: str) -> Tensor:
    out = torch.zeros_like(x)
    for i, token in enumerate(x):
        share, chosen = (w[f"{at}.gate.weight"] @ token).softmax(0).topk(2)
        for weight, expert in zip(share / share.sum(), chosen.tolist(), strict=True):
            gate, up, down = (w[f"{at}.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            a, b = (gate @ token).clamp(max=0.5), (up @ token).clamp(-0.5, 0.5)
            out[i] += weight * (down @ (a * a.sigmoid() * b))
    return out


def reference(ids: list[int]) -> Tensor:
    """Logits of every token, ``(tokens, 50)``."""
    w = {name: torch.from_numpy(value).double() for name, value in values().items()}
    x = w["model.embed_tokens.weight"][ids]
    for layer, kind in enumerate(CONFIG.layer_types):
        at = f"model.layers.{layer}"
        x = x + attention(normed(x, w[f"{at}.input_layernorm.weight"]), w, f"{at}.self_attn", kind)
        x = x + experts(normed(x, w[f"{at}.post_attention_layernorm.weight"]), w, f"{at}.mlp")
    return normed(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def test_a_file_of_gguf_py_and_what_is_made_of_it(tmp_path: Path) -> None:
    ids = [7, 3, 42, 11, 3, 29, 0, 18, 36, 5]
    expected, greedy = reference(ids), list(ids)
    for _ in range(4):
        greedy.append(int(reference(greedy)[-1].argmax()))
    paths = [written(tmp_path / "x.gguf")]
    for to in ("bittorch", "gguf-tq2_0"):
        convert(paths[0], tmp_path / to, to=to, allow_dense=True)
        paths.append(tmp_path / to)
    for path in paths:
        model = LanguageModel.from_pretrained(path, tokenizer=False)
        with torch.inference_mode():
            assert float((model(torch.tensor([ids]))[0] - expected).abs().max()) < 1e-4
        assert model.stream([ids], max_new_tokens=4, temperature=0.0).run().tokens == [greedy[len(ids) :]]


def directory(path: Path, dtype: torch.dtype, **changes: Any) -> Path:
    """Names and entries as the model's own code has them: the embedding is called word_embeddings."""
    path.mkdir()
    own = {name.replace("embed_tokens", "word_embeddings"): value for name, value in values().items()}
    save_file({name: torch.from_numpy(value).to(dtype) for name, value in own.items()}, path / "model.safetensors")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "swiglu_limit": 0.5}
    rules = {"num_shared_experts": 0, "norm_topk_prob": True, "first_k_dense_replace": 0, "use_bias": False}
    layers = {"sliding_window": 3, "layer_types": list(CONFIG.layer_types), "nope_on_global_attention": True}
    rope = {"rope_theta": 10000, "partial_rotary_factor": 0.5, "rope_scaling": None, "rms_norm_eps": 1e-5}
    said = {"model_type": "maple", **sizes, **heads, **experts, **rules, **layers, **rope, **changes}
    (path / "config.json").write_text(json.dumps(said))
    return path


@torch.inference_mode()
def test_a_directory_of_the_publisher(tmp_path: Path) -> None:
    ids = [7, 3, 42, 11, 3, 29]
    found = LanguageModel.from_pretrained(directory(tmp_path / "x", torch.float32), tokenizer=False)
    assert found.config == CONFIG
    assert float((found(torch.tensor([ids]))[0] - reference(ids)).abs().max()) < 1e-4
    with pytest.raises(FormatError, match="has use_bias True"):
        open_checkpoint(directory(tmp_path / "y", torch.float32, use_bias=True))


@torch.inference_mode()
def test_routers_are_precise(tmp_path: Path) -> None:
    """In a bfloat16 model too: experts of logits that differ by less than it holds are told apart."""
    found = LanguageModel.from_pretrained(directory(tmp_path / "x", torch.bfloat16), tokenizer=False)
    mlp = found.layers[0].mlp
    assert (found.dtype, mlp.gate.weight.dtype) == (torch.bfloat16, torch.float32)
    mlp.gate.weight.copy_(torch.ones(6, 32) + torch.tensor([0, 1, 2, 5, 3, 4])[:, None] * 2**-12)
    assert mlp.routed(torch.ones(1, 32, dtype=torch.bfloat16))[1].tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("attention.sliding_window_pattern", [True, False], r"layer_types has 2 values for 4 layers"),
        ("attention.sliding_window_pattern", [1, 1, 1, 0], r"must be true or false for each layer"),
        ("attention.sliding_window", 0, r"window must be positive"),
        ("rope.dimension_count", 7, r"rotary_dim must be even, from 0 to head_dim=16, got 7"),
        ("rope.dimension_count", 0, r"rotates 0 of 16 dimensions of a head"),
        ("rope.scaling.factor", "x", r"rope\.scaling\.factor must be a number, got 'x'"),
        ("embedding_length", "x", r"maple\.embedding_length 'x'; it must be a positive integer"),
        ("swiglu_clamp_exp", [-1.0] * 4, r"expert_limit must be 0 or positive and finite, got -1.0"),
    ],
)
def test_entries_that_cannot_be_right(entry: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(written(tmp_path / "x.gguf", **{entry: value}))
