"""MiniCPM against plain torch in float64: transformers has no class for it."""

from __future__ import annotations

import dataclasses
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
from bittorch.models.io.hf_config import config_to_hf
from tests.models.architectures.agree import assert_packed_alike_from_everywhere
from tests.models.io.gguf_files import NO_TOKENS, write

LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 3.5, 6.0],
    "original_max_position_embeddings": 16,
}
SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_layers": 3}
HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "max_positions": 64}
CONFIG = ModelConfig(
    architecture="minicpm",
    **SIZES,
    **HEADS,
    rms_norm_eps=1e-5,
    rope_scaling=LONG,
    tie_embeddings=True,
    embedding_scale=12.0,
    residual_scale=1.4 / 3**0.5,
    logit_scale=32 / 12,
)
ENTRIES = {
    "embedding_scale": 12.0,
    "residual_scale": 1.4 / 3**0.5,
    "logit_scale": 32 / 12,
    "rope.scaling.type": "longrope",
    "rope.scaling.original_context_length": 16,
    "rope.scaling.attn_factor": 1.5**0.5,  # sqrt(1 + ln(64 / 16) / ln(16))
}
Weights = dict[str, Tensor]


def values(config: ModelConfig = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        name: (rng.standard_normal(shape) * shape[-1] ** -0.5 if len(shape) == 2 else rng.uniform(0.5, 1.5, shape))
        .astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }  # fmt: skip


def folder(path: Path, config: ModelConfig = CONFIG, **changes: Any) -> Path:
    """A directory with the entries of the checkpoints that are published; None leaves one out."""
    path.mkdir()
    entries: dict[str, Any] = {
        "architectures": ["MiniCPMForCausalLM"],
        "model_type": "minicpm",
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_scaling": config.rope_scaling,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 12,
        **changes,
    }
    (path / "config.json").write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))
    save_file({name: torch.from_numpy(value) for name, value in values(config).items()}, path / "model.safetensors")
    return path


def gguf_file(path: Path, raw: tuple[str, ...] = ("short", "long"), **changes: Any) -> Path:
    extra = {f"minicpm.{key}": value for key, value in {**ENTRIES, **changes}.items()}
    factors = {f"rope_factors_{kind}.weight": (0, np.array(LONG[f"{kind}_factor"], "<f4")) for kind in raw}
    write(path, "minicpm", CONFIG, "F32", values(), extra, without=NO_TOKENS, raw=factors)
    return path


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt() * weight


def turned(x: Tensor, extended: bool) -> Tensor:
    """Channels i and i + 4 of ``(tokens, heads, 8)``, for the longer context or for the original one."""
    out = torch.empty_like(x)
    for position in range(len(x)):
        for i in range(4):
            factor = LONG["long_factor" if extended else "short_factor"][i]
            angle = torch.tensor(position / factor * 10000.0 ** (-2 * i / 8), dtype=torch.float64)
            a, b, magnitude = x[position, :, i], x[position, :, i + 4], 1.5**0.5 if extended else 1.0
            out[position, :, i] = (a * angle.cos() - b * angle.sin()) * magnitude
            out[position, :, i + 4] = (b * angle.cos() + a * angle.sin()) * magnitude
    return out


def attention(x: Tensor, w: Weights, at: str, extended: bool) -> Tensor:
    q, k, v = ((x @ w[f"{at}.{name}_proj.weight"].T).unflatten(1, (-1, 8)) for name in "qkv")
    q, k = turned(q, extended), turned(k, extended)
    out = torch.zeros_like(q)
    for i in range(len(x)):
        for head in range(4):
            share = (k[: i + 1, head // 2] @ q[i, head] / 8**0.5).softmax(0)
            out[i, head] = share @ v[: i + 1, head // 2]
    return out.flatten(1) @ w[f"{at}.o_proj.weight"].T


def reference(ids: list[int], extended: bool = True, config: ModelConfig = CONFIG) -> Tensor:
    """Logits of every token, ``(tokens, 50)``."""
    w = {name: torch.from_numpy(value).double() for name, value in values(config).items()}
    x = w["model.embed_tokens.weight"][ids] * 12
    for layer in range(3):
        at = f"model.layers.{layer}"
        inner = attention(normed(x, w[f"{at}.input_layernorm.weight"]), w, f"{at}.self_attn", extended)
        x = x + inner * (1.4 / 3**0.5)
        inner = normed(x, w[f"{at}.post_attention_layernorm.weight"])
        gate, up, down = (w[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
        gate = inner @ gate
        x = x + (gate * gate.sigmoid() * (inner @ up)) @ down * (1.4 / 3**0.5)
    head = w["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    return normed(x, w["model.norm.weight"]) / (32 / 12) @ head.T


IDS = [7, 3, 42, 11, 3, 29, 0, 18, 36, 5, 1, 2, 3, 44, 45, 46, 12, 9, 9, 20]


def assert_like_the_reference(path: Path, expected: Tensor, greedy: list[int]) -> None:
    model = LanguageModel.from_pretrained(path, tokenizer=False)
    with torch.inference_mode():
        assert float((model(torch.tensor([IDS]))[0] - expected).abs().max()) < 1e-4
    assert model.stream([IDS], max_new_tokens=3, temperature=0.0).run().tokens == [greedy]


@pytest.mark.parametrize("origin", ["directory", "gguf"])
def test_every_format_gives_what_the_formulas_give(origin: str, tmp_path: Path) -> None:
    expected, greedy = reference(IDS), list(IDS)
    for _ in range(3):
        greedy.append(int(reference(greedy)[-1].argmax()))
    paths = [folder(tmp_path / "hf") if origin == "directory" else gguf_file(tmp_path / "x.gguf")]
    for to in ("bittorch", "gguf-tq2_0"):
        convert(paths[-1], tmp_path / to, to=to, allow_dense=True)
        paths.append(tmp_path / to)
    for path in paths:
        assert_like_the_reference(path, expected, greedy[len(IDS) :])


def test_the_original_context_takes_the_short_factors(tmp_path: Path) -> None:
    """With a head of its own, and as a GGUF file without the original context says it."""
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    path = folder(tmp_path / "hf", config, max_position_embeddings=16, tie_word_embeddings=False)
    ids = IDS[:16]
    expected = reference(ids, extended=False, config=config)
    convert(path, tmp_path / "x.gguf", to="gguf-tq2_0", allow_dense=True)
    changes = {"context_length": 16, "rope.scaling.original_context_length": 16}
    without = gguf_file(tmp_path / "y.gguf", **{**changes, "rope.scaling.attn_factor": 1.0})
    for model, wanted in ((path, expected), (tmp_path / "x.gguf", expected), (without, reference(ids, extended=False))):
        found = LanguageModel.from_pretrained(model, tokenizer=False)
        with torch.inference_mode():
            assert float((found(torch.tensor([ids]))[0] - wanted).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore:the model has activation_bits=8:bittorch.models.io.CheckpointWarning")
def test_packed_models_are_the_same_from_every_format(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_layers": 1}
    rope = {**LONG, "short_factor": LONG["short_factor"] * 8, "long_factor": LONG["long_factor"] * 8}
    assert_packed_alike_from_everywhere(dataclasses.replace(CONFIG, **sizes, rope_scaling=rope), tmp_path)


def test_scales_come_back_as_they_were_written(tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path / "hf", num_hidden_layers=3)) as found:
        assert found.config == CONFIG
        written = config_to_hf(found.config)
    assert (written["scale_emb"], written["scale_depth"], written["dim_model_base"]) == (12.0, 1.4, 12.0)


def test_a_config_without_model_type_is_known_by_its_class(tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path / "hf", model_type=None)) as found:
        assert found.config.architecture == "minicpm"


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("scale_emb", "12", r"scale_emb must be positive and finite, got '12'"),
        ("scale_depth", 0, r"scale_depth must be positive and finite, got 0"),
        ("dim_model_base", -256, r"dim_model_base must be positive and finite, got -256"),
        ("num_hidden_layers", "3", r"num_layers must be a positive integer, got '3'"),
        ("sparse_config", {"topk": 64}, r"sparse_config \{'topk': 64\}, which changes what the model computes"),
        ("rope_scaling", {**LONG, "long_factor": [1.0]}, r"long_factor must be 4 numbers, got shape \(1,\)"),
    ],
)
def test_entries_of_a_directory_that_cannot_be_right(entry: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"config\.json.*{message}"):
        open_checkpoint(folder(tmp_path / "hf", **{entry: value}))


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (("short",), {}, r"needs rope_factors_short\.weight and rope_factors_long\.weight alone, but has rope_f"),
        ((), {}, "but has neither"),
        (("short", "long"), {"rope.scaling.factor": 2.0}, r"rope\.scaling\.factor is 2\.0"),
        (("short", "long"), {"rope.scaling.type": "none"}, r"has rope_factors_long\.weight, but rope\.scaling\.type"),
        (("short", "long"), {"embedding_scale": 0.0}, r"embedding_scale must be positive and finite, got 0\.0"),
        (("short", "long"), {"logit_scale": float("nan")}, "logit_scale must be positive and finite, got nan"),
    ],
)
def test_gguf_files_that_cannot_be_right(
    raw: tuple[str, ...], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    changes = {**changes, **({"rope.scaling.attn_factor": 1.0} if "rope.scaling.type" in changes else {})}
    with pytest.raises(FormatError, match=message):
        open_checkpoint(gguf_file(tmp_path / "x.gguf", raw, **changes))
