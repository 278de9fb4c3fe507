"""Matrices with a norm of their input, as bitnet-embedding and transformers' use_rms_norm have them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bittorch.models import LanguageModel
from bittorch.models.config import PROJECTIONS
from bittorch.models.io import CheckpointWarning, FormatError, LossyError, convert, open_checkpoint
from bittorch.models.io.gguf_split import read_parts
from tests import helpers
from tests.models.architectures.agree import (
    IDS,
    assert_alike,
    assert_packed_alike_from_everywhere,
    made,
    rounded,
    saved,
)
from tests.models.architectures.test_gemma3 import CONFIG as GEMMA3
from tests.models.architectures.test_gemma3 import gemma3


class Normed(nn.Module):
    """Its weight quantised by its mean, its input normed and, with ``eight``, rounded to 8 bits: in plain torch."""

    eight = False

    def __init__(self, linear: nn.Linear, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = linear.weight, eps
        self.norm = nn.Module()
        generator = helpers.seeded(linear.in_features + linear.out_features)
        self.norm.weight = nn.Parameter(torch.rand(linear.in_features, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.norm.weight
        if self.eight:
            x = rounded(x)
        mean = self.weight.abs().mean()
        return F.linear(x, (self.weight / mean).round().clamp(-1, 1) * mean)


def normed(net: Any, eps: float = 1e-6) -> Any:
    """The model of transformers with `Normed` in the place of its projections."""
    for layer in net.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name in PROJECTIONS:
                if hasattr(block, name):
                    setattr(block, name, Normed(getattr(block, name), eps))
    return net


def qwen3() -> Any:
    return normed(made("Qwen3", head_dim=32, tie_word_embeddings=True))


def opened(path: Path, **options: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(path, tokenizer=False, **options)


@pytest.mark.parametrize(
    ("architecture", "make"),
    [("qwen3", qwen3), ("gemma3", lambda: normed(gemma3(query_pre_attn_scalar=32)))],
    ids=["qwen3", "gemma3"],
)
def test_models_of_every_origin(architecture: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json does not say that the weights are masters: the norms do, with a warning."""
    net = make()
    net.save_pretrained(tmp_path / "hf")
    with pytest.warns(CheckpointWarning, match="norms of the input of each matrix and no quantization_config"):
        convert(tmp_path / "hf", tmp_path / "own", to="bittorch")
    convert(tmp_path / "own", tmp_path / "x.gguf", to="gguf-i2_s")
    for path in (tmp_path / "own", tmp_path / "x.gguf"):
        with open_checkpoint(path) as found:
            assert (found.config.architecture, found.config.activation_bits) == (architecture, 8)
        assert_alike(opened(path, activation_bits=None), net)
    _, _, table = read_parts(tmp_path / "x.gguf")
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    assert {f"blk.0.{name}_norm_in.weight" for name in names} <= set(table)
    monkeypatch.setattr(Normed, "eight", True)
    with torch.inference_mode():
        assert helpers.relative_l2(opened(tmp_path / "x.gguf")(IDS), net(IDS).logits) < 2e-2


@pytest.mark.parametrize("config", [GEMMA3, dataclasses.replace(GEMMA3, architecture="qwen3", norms_from_one=False)])
def test_packed_models_are_the_same_from_every_format(config: Any, tmp_path: Path) -> None:
    if config.architecture == "qwen3":
        config = dataclasses.replace(config, hidden_act="silu", window=0, layer_types=(), local_rope_theta=0.0)
    targets = ("bittorch", "bittorch-base3", "gguf-tq1_0", "gguf-q2_0", "gguf-i2_s")
    assert_packed_alike_from_everywhere(
        dataclasses.replace(config, input_norm_eps=config.rms_norm_eps), tmp_path, targets
    )


def of_transformers(net: Any, folder: Path, **quantization: Any) -> Path:
    """As transformers saves a model with use_rms_norm: the norms have another name, and an eps of their own."""
    mode = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    saved(net, folder, quantization_config={**mode, "use_rms_norm": True, **quantization})
    file = folder / "model.safetensors"
    state = {name.replace("_proj.norm.", "_proj.rms_norm."): value for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    return folder


def test_norms_of_transformers(tmp_path: Path) -> None:
    net = normed(made("Llama", rms_norm_eps=1e-5), eps=1e-2)
    path = of_transformers(net, tmp_path / "hf", rms_norm_eps=1e-2)
    assert_alike(opened(path, activation_bits=None), net)
    convert(path, tmp_path / "own", to="bittorch")
    assert_alike(opened(tmp_path / "own", activation_bits=None), net)
    with pytest.raises(LossyError, match=r"rms_norm_eps is 1e-05 and input_norm_eps 0\.01"):
        convert(path, tmp_path / "x.gguf", to="gguf-i2_s")
    with pytest.raises(LossyError, match="norms of the input of each matrix"):
        convert(path, tmp_path / "bitnet", to="bitnet")


def test_what_cannot_be_right(tmp_path: Path) -> None:
    path = of_transformers(normed(made("Llama")), tmp_path / "hf", rms_norm_eps=-1.0)
    with pytest.raises(FormatError, match=r"input_norm_eps must be 0, or above 0 and below 1, got -1\.0"):
        open_checkpoint(path)
    plain = of_transformers(made("Llama"), tmp_path / "plain")
    with pytest.raises(FormatError, match="says use_rms_norm, but has no norm of the input of q_proj"):
        open_checkpoint(plain)
    state = load_file(path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.rms_norm.weight"]
    save_file(state, path / "model.safetensors")
    values = json.loads((path / "config.json").read_text())
    values["quantization_config"]["rms_norm_eps"] = 1e-6
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(FormatError, match=r"lacks 1 tensors .* model\.layers\.1\.mlp\.up_proj\.norm\.weight"):
        open_checkpoint(path)
