"""Qwen3-MoE against transformers, from every place that it can come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, LossyError, convert, from_memory, open_checkpoint, save
from tests.models.architectures.agree import (
    assert_alike,
    assert_alike_but_from_gguf,
    assert_alike_from_everywhere,
    made,
    saved,
    written_by_gguf_py,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
ENTRIES = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
LAST = "model.layers.1.mlp.experts"


def moe(**changes: Any) -> Any:
    return made("Qwen3Moe", **{**EXPERTS, **changes})


def stacked(folder: Path, **changes: Any) -> Path:
    """A directory that has the experts of a layer in one tensor, as transformers' modules have them."""
    moe().config.save_pretrained(folder)
    tensors = {name: value.clone() for name, value in moe().state_dict().items()}
    save_file({**tensors, **changes}, folder / "model.safetensors")
    return folder


def test_dense_models_of_every_origin(tmp_path: Path) -> None:
    net = moe(head_dim=32)
    assert net.model.layers[0].mlp.experts.gate_up_proj.shape == (4, 64, 64)
    assert_alike_from_everywhere(net, "qwen3_moe", tmp_path)


def test_layers_without_experts_and_weights_as_they_are(tmp_path: Path) -> None:
    """Of four layers the last alone has experts; GGUF has no entries that say so."""
    net = moe(num_hidden_layers=4, mlp_only_layers=[1], decoder_sparse_step=2, norm_topk_prob=False)
    assert [hasattr(layer.mlp, "experts") for layer in net.model.layers] == [False, False, False, True]
    assert_alike(LanguageModel.from_transformers(net), net)
    assert_alike_but_from_gguf(net, tmp_path, r"no entry of qwen3moe for normalise_experts=False")


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    assert_alike(LanguageModel.from_pretrained(stacked(tmp_path), tokenizer=False), moe())


def test_a_file_of_gguf_py(tmp_path: Path) -> None:
    net = moe()
    path = written_by_gguf_py(net, "qwen3moe", tmp_path, {f"qwen3moe.{key}": value for key, value in ENTRIES.items()})
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)


@pytest.mark.filterwarnings("ignore:.*exactly trits times scales")
@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0", "compressed-tensors"])
def test_ternary_experts_come_back_packed(to: str, tmp_path: Path) -> None:
    """Each expert has a scale of its own, which float16 holds."""
    net = moe(hidden_size=256, moe_intermediate_size=256)
    with torch.no_grad():
        for layer in net.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                scale = torch.arange(1.0, 5.0).view(4, 1, 1) / 64
                weight.copy_(torch.randint(-1, 2, weight.shape) * scale)
    net.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as written:
        experts = [written.info(name).ternary for name in written.names if ".experts." in name]
        assert experts == [True] * 24
        assert not written.info("model.layers.0.mlp.gate.weight").ternary
    model = LanguageModel.from_pretrained(tmp_path / "out", tokenizer=False)
    assert_alike(model, net)
    model.save_pretrained(tmp_path / "again", to=to)
    assert_alike(LanguageModel.from_pretrained(tmp_path / "again", tokenizer=False), net)


@pytest.mark.filterwarnings("ignore:.*exactly trits times scales", "ignore:.*is all zeros")
def test_an_expert_of_zeros_goes_with_its_stack(tmp_path: Path) -> None:
    """As floats that are ternary beside it, and as floats beside trits; a GGUF file has one type for a stack."""
    net = moe(hidden_size=256, moe_intermediate_size=256)
    with torch.no_grad():
        for layer in net.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(torch.randint(-1, 2, weight.shape) / 16)
                weight[1] = 0
    net.save_pretrained(tmp_path / "hf")
    zeros, other = f"{LAST}.1.down_proj.weight", f"{LAST}.2.down_proj.weight"
    with open_checkpoint(tmp_path / "hf") as source:
        assert source.info(zeros).ternary
        assert source.packed(zeros).scale.tolist() == [1]
        state = {
            name: source.packed(name) if source.info(name).ternary else source.dense(name) for name in source.names
        }
        mixed = from_memory(source.config, {**state, zeros: source.dense(zeros)}, {})
        save(mixed, tmp_path / "mixed.gguf", to="gguf-tq2_0")
        with pytest.raises(LossyError, match=r"experts.0.down_proj.weight is TQ2_0 and .*2.down_proj.weight F32"):
            save(
                from_memory(source.config, {**state, other: source.dense(other)}, {}),
                tmp_path / "no.gguf",
                to="gguf-tq2_0",
            )
    convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf-tq2_0")
    for name in ("x.gguf", "mixed.gguf"):
        found = LanguageModel.from_pretrained(tmp_path / name, tokenizer=False)
        assert_alike(found, net)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 0}, r"config.json: experts_per_token must be from 1 to num_experts=4, got 0"),
        ({"num_experts_per_tok": 5}, r"config.json: experts_per_token must be from 1 to num_experts=4, got 5"),
        ({"scoring_func": "sigmoid"}, r"config.json has scoring_func 'sigmoid', .* supported: 'softmax'"),
        ({"num_experts": 8}, r"config.json has num_experts 8 and num_local_experts 4"),
        ({"num_local_experts": 5}, r"lacks 6 tensors .*model.layers.0.mlp.experts.4.gate_proj.weight"),
        ({"num_local_experts": 2**30}, r"too few for 1073741824 experts in 2 layers"),
        ({"num_local_experts": 0}, r"lacks 6 tensors .* others, first 'model.layers.0.mlp.experts.0"),
    ],
)
def test_configurations_that_cannot_be_right(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(saved(moe(), tmp_path, **changes))


def test_stacks_that_cannot_be_right(tmp_path: Path) -> None:
    for name, value, message in (
        ("down_proj", torch.zeros(5, 64, 32), r"down_proj of shape \(5, 64, 32\) must have the 4 experts"),
        ("gate_up_proj", torch.zeros(4, 64), r"gate_up_proj must be \(experts, rows, columns\) .* got \(4, 64\)"),
        ("3.down_proj.weight", torch.zeros(64, 32), r"has model.layers.1.mlp.experts.3.down_proj.weight twice"),
    ):
        with pytest.raises(FormatError, match=message):
            open_checkpoint(stacked(tmp_path, **{f"{LAST}.{name}": value}))


def test_a_router_without_experts_is_refused(tmp_path: Path) -> None:
    file = saved(moe(), tmp_path) / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if ".experts." not in name}, file)
    with pytest.raises(FormatError, match=r"too few for 4 experts in 2 layers|lacks 24 tensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("expert_count", 5, r"x.gguf: .*experts.\*.down_proj.weight of shape \(4, 64, 32\) must have the 5 experts"),
        ("expert_used_count", 5, r"x.gguf: experts_per_token must be from 1 to num_experts=4, got 5"),
        ("expert_gating_func", 2, r"qwen3moe.expert_gating_func' = 2 \(supported: 0, 1\)"),
    ],
)
def test_gguf_files_that_cannot_be_right(entry: str, value: int, message: str, tmp_path: Path) -> None:
    extra = {f"qwen3moe.{key}": number for key, number in {**ENTRIES, entry: value}.items()}
    with pytest.raises(FormatError, match=message):
        open_checkpoint(written_by_gguf_py(moe(), "qwen3moe", tmp_path, extra))
