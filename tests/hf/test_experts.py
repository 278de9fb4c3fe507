"""Fused experts in transformers: packed on the fly, saved and loaded, against experts of plain linear layers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bittorch
from bittorch import TernaryLinearInference, TernaryQuantConfig
from bittorch.models import LanguageModel
from tests import helpers
from tests.hf import tiny

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import bittorch.hf  # noqa: E402
from bittorch.hf.experts import PackedExperts  # noqa: E402

AutoCausal, TernaryConfig = transformers.AutoModelForCausalLM, bittorch.hf.TernaryConfig
SIZES = {**tiny.SIZES, "num_hidden_layers": 1, "num_experts_per_tok": 2}
EXPERTS = "model.layers.0.mlp.experts"


def _mixtral() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4)).eval()


def _qwen3() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES, **sizes)).eval()


MODELS = {"mixtral": _mixtral, "qwen3_moe": _qwen3}
ROUTES = {
    "twn": ({}, TernaryQuantConfig(method="twn"), None),
    "int8": (
        {"method": "absmean", "granularity": "tensor", "activation_bits": 8},
        TernaryQuantConfig(method="absmean", granularity="tensor", activation_bits=8),
        None,
    ),
    "depth": ({"depth": 3, "group_size": 16}, TernaryQuantConfig(group_size=16), 3),
}


class _Apart(nn.Module):
    """Experts of ordinary linear layers, token by token."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for gate_up, down in zip(fused.gate_up_proj.detach(), fused.down_proj.detach(), strict=True):
            half = len(gate_up) // 2
            for layers, weight in ((self.gate, gate_up[:half]), (self.up, gate_up[half:]), (self.down, down)):
                layers.append(nn.Linear(*weight.shape[::-1], bias=False))
                layers[-1].weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for token, (experts, own) in enumerate(zip(chosen.tolist(), weights, strict=True)):
            for expert, weight in sorted(zip(experts, own, strict=True), key=lambda pair: pair[0]):
                row = x[token : token + 1]
                inner = nn.functional.silu(self.gate[expert](row)) * self.up[expert](row)
                out[token] += (self.down[expert](inner) * weight)[0]
        return out


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", MODELS)
def test_logits_of_every_route_are_equal(kind: str, route: str, tmp_path: Path) -> None:
    (values, config, depth), model = ROUTES[route], MODELS[kind]()
    dense = tiny.saved(model, tmp_path / "dense")
    apart = copy.deepcopy(model)
    apart.set_submodule(EXPERTS, _Apart(model.get_submodule(EXPERTS)))
    expected = tiny.logits(tiny.own_route(apart, config, depth))
    loaded = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(**values))
    assert isinstance(loaded.get_submodule(EXPERTS), PackedExperts)
    helpers.assert_same_bits(tiny.logits(loaded), expected)
    folder = tiny.saved(loaded, tmp_path / "packed")
    assert not any(
        key.endswith(("gate_up_proj", "down_proj.weight")) for key in load_file(folder / "model.safetensors")
    )
    again = AutoCausal.from_pretrained(folder)
    helpers.assert_same_bits(tiny.logits(again), expected)
    if kind == "qwen3_moe":  # which bittorch.models knows
        with torch.inference_mode():
            helpers.assert_same_bits(LanguageModel.from_pretrained(folder, tokenizer=False)(tiny.IDS), expected)
    if route == "twn":  # and through the experts of transformers
        fused = again.dequantize()
        assert type(fused.get_submodule(EXPERTS)) is type(model.get_submodule(EXPERTS))
        helpers.assert_near(tiny.logits(fused), expected, 1e-5)


def test_halves_round_no_master(tmp_path: Path) -> None:
    dense = tiny.saved(_qwen3(), tmp_path / "dense")
    full, half = (
        AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for a, b in zip(full.get_submodule(EXPERTS).modules(), half.get_submodule(EXPERTS).modules(), strict=True):
        if isinstance(a, TernaryLinearInference):
            assert torch.equal(a.weight_packed, b.weight_packed)
            assert torch.equal(a.scale, b.scale)
    assert tiny.logits(half).dtype == torch.bfloat16


def test_experts_can_be_left_and_packed_alone(tmp_path: Path) -> None:
    model = _mixtral()
    dense = tiny.saved(model, tmp_path / "dense")
    left = AutoCausal.from_pretrained(
        dense, quantization_config=TernaryConfig(modules_to_not_convert=["lm_head", "experts"])
    )
    assert isinstance(left.get_submodule(tiny.Q_PROJ), TernaryLinearInference)
    assert torch.equal(left.get_submodule(EXPERTS).down_proj, model.get_submodule(EXPERTS).down_proj)
    alone = AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(modules_to_convert=["experts"]))
    assert type(alone.get_submodule(tiny.Q_PROJ)) is nn.Linear
    again = AutoCausal.from_pretrained(tiny.saved(alone, tmp_path / "alone"))
    helpers.assert_same_bits(tiny.logits(again), tiny.logits(alone))


def test_what_has_no_packed_form_is_refused(tmp_path: Path) -> None:
    model = _mixtral()
    model.get_submodule(EXPERTS).down_proj.data[2, 3, 4] = float("inf")
    tiny.saved(model, tmp_path / "inf")
    with pytest.raises(ValueError, match=f"cannot convert {EXPERTS}: .*{EXPERTS}.2.down_proj.*finite.* row 3"):
        AutoCausal.from_pretrained(tmp_path / "inf", quantization_config=TernaryConfig())
    dense = tiny.saved(_qwen3(), tmp_path / "dense")
    with pytest.raises(ValueError, match=f"cannot convert {EXPERTS}: .*group_size=64 and in_features=32"):
        AutoCausal.from_pretrained(dense, quantization_config=TernaryConfig(group_size=64))
    sizes = {**SIZES, "num_local_experts": 4, "head_dim": 16}
    tiny.saved(transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes)), tmp_path / "biased")
    with pytest.raises(ValueError, match=f"{EXPERTS}.gate_up_proj holds weights of several .* other than gate, up and"):
        AutoCausal.from_pretrained(tmp_path / "biased", quantization_config=TernaryConfig())


def test_damaged_experts_are_refused(tmp_path: Path) -> None:
    model = AutoCausal.from_pretrained(tiny.saved(_mixtral(), tmp_path / "dense"), quantization_config=TernaryConfig())
    file = tiny.saved(model, tmp_path / "packed") / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    key = next(name for name in tensors if name.endswith("experts.1.up_proj.weight_packed"))
    whole = tensors.pop(key)
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=f"{EXPERTS}.1.up_proj.weight_packed"):
        AutoCausal.from_pretrained(file.parent)
    whole[0, 0] = 0b11
    save_file({**tensors, key: whole}, file, metadata)
    with pytest.raises(ValueError, match=f"layer '{EXPERTS}.1.up_proj'"):
        AutoCausal.from_pretrained(file.parent)
