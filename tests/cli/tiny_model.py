"""A language model of a few thousand random weights, with a tokenizer whose tokens are bytes, as a directory."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from bittorch.models import ModelConfig
from bittorch.models.decoder import tensor_shapes

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "torch_dtype": "float32",
}


def make(directory: Path, *, template: bool = True, poison: bool = False, **changes: object) -> Path:
    """Writes the model.

    Args:
        directory: is made.
        template: whether it is one to chat with.
        poison: its logits are not finite.
        changes: of config.json.
    """
    directory.mkdir(parents=True)
    values = {**CONFIG, **changes}
    (directory / "config.json").write_text(json.dumps(values))
    config = ModelConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["num_key_value_heads"],
        head_dim=values["head_dim"],
        max_positions=values["max_position_embeddings"],
        tie_embeddings=values["tie_word_embeddings"],
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in tensor_shapes(config).items()
    }
    if poison:
        tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _make_tokenizer(directory, template)
    return directory


def _make_tokenizer(directory: Path, template: bool) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    values = {"eos_token": SPECIAL[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({**values, **({"chat_template": TEMPLATE} if template else {})})
    )
