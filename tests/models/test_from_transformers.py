"""The chain of a language model: trained in transformers, then chat, GGUF, a BitNet folder, our own checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bittorch import TernaryLinear, TernaryQuantConfig, export_for_inference, quantize_, quantize_model
from bittorch.models import LanguageModel
from bittorch.models.io import FormatError, LossyError, open_checkpoint
from tests import helpers

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
IDS = torch.randint(0, 300, (2, 40), generator=helpers.seeded(3))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What a configuration becomes in training: method, granularity and so on.
CONFIGS = {
    "row": TernaryQuantConfig(method="twn"),
    "tensor": TernaryQuantConfig(method="absmean", granularity="tensor"),
    "groups": TernaryQuantConfig(group_size=64),
    "lsq": TernaryQuantConfig(method="lsq"),
    "seq of groups": TernaryQuantConfig(method="seq", group_size=128),
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "bitnet": {"bitnet": True, "tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
}


def make(name: str = "llama", **changes: Any) -> nn.Module:
    """A dense model with values of trained size."""
    values = {**SIZES, **MODELS[name], **changes}
    if values.pop("bitnet", False):
        model = transformers.BitNetForCausalLM(transformers.BitNetConfig(**values))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def train(model: nn.Module, steps: int = 2) -> nn.Module:
    """Some steps of training, then eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def trained(name: str = "llama", config: Any = None, skip: Any = "lm_head", **changes: Any) -> nn.Module:
    model = make(name, **changes)
    quantize_(model, config or CONFIGS["row"], skip=skip)
    return train(model)


@torch.inference_mode()
def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    output = model(ids)
    return output if isinstance(output, Tensor) else output.logits


# FIELD N3
@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_eval_bit_for_bit(name: str, activation_bits: int | None) -> None:
    model = trained(name, TernaryQuantConfig(method="twn", activation_bits=activation_bits))
    ours = LanguageModel.from_transformers(model)
    for ids in (IDS, IDS[:1], IDS[:1, :1], IDS[:, :7]):
        helpers.assert_same_bits(logits(ours, ids), logits(model, ids))


# FIELD N3
@pytest.mark.parametrize("config", CONFIGS)
def test_own_checkpoint_keeps_every_granularity_bit_for_bit(config: str, tmp_path: Path) -> None:
    model = trained(config=CONFIGS[config])
    LanguageModel.from_transformers(model).save_pretrained(tmp_path / "model")
    helpers.assert_same_bits(logits(LanguageModel.from_pretrained(tmp_path / "model", tokenizer=False)), logits(model))
