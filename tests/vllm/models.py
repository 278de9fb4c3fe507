"""Tiny models with random weights, packed into folders in each way that the plugin serves, and their tokens here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from bittorch.models import LanguageModel
from bittorch.models.io import convert
from tests.vllm.tokens import NEW_TOKENS, PROMPTS

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))


def qwen2() -> nn.Module:
    """With biases of q, k and v."""
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def bitnet() -> nn.Module:
    return BitNetForCausalLM(BitNetConfig(**SIZES, rope_theta=5e5, tie_word_embeddings=False))


def folder(root: Path, name: str, make: Callable[[], nn.Module], bits: int | None, **options: Any) -> Path:
    """A model of ours as bittorch saves it."""
    torch.manual_seed(1)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    model.save_pretrained(root / f"{name}-dense")
    packed = LanguageModel.from_pretrained(
        root / f"{name}-dense", activation_bits=bits, tokenizer=False, dtype=torch.float32, **{"depth": 1, **options}
    )
    packed.save_pretrained(root / name)
    return root / name


def compressed(own: Path) -> Path:
    """The same weights for compressed-tensors."""
    made = own.with_name(f"{own.name}-compressed")
    convert(own, made, to="compressed-tensors")
    return made


def tokens(path: Path) -> list[list[int]]:
    """Greedy tokens of bittorch's own engine."""
    model = LanguageModel.from_pretrained(path, tokenizer=False, dtype=torch.float32)
    return model.stream(PROMPTS, max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True).run().tokens
