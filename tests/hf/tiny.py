"""Tiny models of transformers in folders."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

import bittorch

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
}
IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
Q_PROJ = "model.layers.0.self_attn.q_proj"


def llama(tied: bool = False) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def qwen2() -> transformers.PreTrainedModel:
    """With biases of q, k and v."""
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


def saved(model: transformers.PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits


def own_route(
    model: nn.Module, config: bittorch.TernaryQuantConfig | None = None, depth: int | None = None
) -> nn.Module:
    """What bittorch makes of a dense model without transformers' loading."""
    if depth is not None:
        return bittorch.quantize_model(model, config, skip="lm_head", depth=depth)
    model = copy.deepcopy(model)
    bittorch.quantize_(model, config, skip="lm_head")
    return bittorch.export_for_inference(model.eval())
