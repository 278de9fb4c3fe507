"""LLaMA as ternary models of others are stored: Falcon-E, Falcon3-1.58, Llama3-8B-1.58 and TriLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bittorch.models import LanguageModel
from bittorch.models.io import CheckpointWarning, convert, open_checkpoint
from tests import helpers
from tests.models.architectures.agree import IDS, assert_alike, made, rounded


def absmean(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and the inverse of their scale, as the training code of Falcon-E has them."""
    inverse = 1 / weight.abs().mean()
    return (weight * inverse).round().clamp(-1, 1), inverse


def packed(net: Any, folder: Path, quantization: dict[str, Any], **entries: Any) -> Path:
    """The model's directory with four rows of a projection in a byte, and the weights of ``net`` made ternary."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for name in [name for name in state if name.endswith("_proj.weight")]:
        codes, inverse = absmean(state[name])
        quarters = (codes + 1).to(torch.uint8).chunk(4)
        state[name] = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
        state[f"{name}_scale"] = inverse.reshape(1)
        net.get_parameter(name).data = codes / inverse
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    values = {**net.config.to_dict(), "quantization_config": quantization, **entries}
    (folder / "config.json").write_text(json.dumps(values, default=str))
    return folder


@pytest.mark.parametrize(
    ("quantization", "entries"),
    [
        ({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}, {"is_bitnet_config": True}),
        ({"quant_method": "bitnet", "modules_to_not_convert": None}, {"pretraining_tp": 1}),
    ],
    ids=["falcon-e", "llama3-8b-1.58"],
)
def test_packed_checkpoints_divide_by_their_scale(
    quantization: dict[str, Any], entries: dict[str, Any], tmp_path: Path
) -> None:
    """Of onebitllms and transformers' first BitNet integration, which name no linear_class; 8-bit activations."""
    net = made("Llama")
    path = packed(net, tmp_path / "hf", quantization, **entries)
    with open_checkpoint(path) as found:
        assert (found.config.architecture, found.config.activation_bits) == ("llama", 8)
        assert not found.info("lm_head.weight").ternary
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False, activation_bits=None), net)
    convert(path, tmp_path / "own", to="bittorch")
    assert_alike(LanguageModel.from_pretrained(tmp_path / "own", tokenizer=False, activation_bits=None), net)
    eight = LanguageModel.from_pretrained(path, tokenizer=False, fuse_norms=False)
    handles = [
        layer.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
        for name, layer in net.named_modules()
        if name.endswith("_proj")
    ]
    with torch.inference_mode():
        assert helpers.relative_l2(eight(IDS), net(IDS).logits) < 2e-2
    assert len(handles) == 14


def test_unpacked_models_with_a_scale_for_blocks_of_rows_are_packed(tmp_path: Path) -> None:
    """TriLM was trained on several devices, each with its own scale: floats are trits times a scale for their rows."""
    net = made("Llama")
    for name, weight in net.named_parameters():
        weight.data = weight.data.half().float()
        if name.endswith("_proj.weight"):
            blocks = [absmean(block.float()) for block in weight.data.chunk(2)]
            weight.data = torch.cat([codes * (1 / inverse).half() for codes, inverse in blocks]).float()
    state = {name: value.half() for name, value in net.state_dict().items()}
    net.save_pretrained(tmp_path / "hf", state_dict=state)
    with pytest.warns(CheckpointWarning, match="exactly trits"):
        model = LanguageModel.from_pretrained(tmp_path / "hf", tokenizer=False, dtype=torch.float32)
    assert model.config.activation_bits is None
    assert_alike(model, net)
    with pytest.warns(CheckpointWarning), open_checkpoint(tmp_path / "hf") as found:
        weight = found.packed("model.layers.0.mlp.down_proj.weight")
    assert len(weight.scale.unique()) == 2
