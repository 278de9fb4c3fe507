"""A tiny random llama model, and the same in a GGUF file, for the scripts that read one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

gguf = pytest.importorskip("gguf", reason="needs bittorch[hf]")
transformers = pytest.importorskip("transformers", reason="needs bittorch[hf]")


def model() -> nn.Module:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    for parameter in made.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return made


def _vocabulary() -> list[str]:
    """The characters that byte-level BPE writes bytes as, and two merges."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in printed else chr(next(rest)) for b in range(256)] + ["wo", "12"]


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order of GGUF: the two halves of a head's rows alternate."""
    order = [h * len(weight) // heads + half for h in range(heads) for half in _alternate(len(weight) // heads)]
    return weight[order]


def _alternate(rows: int) -> list[int]:
    return [i // 2 + (i % 2) * rows // 2 for i in range(rows)]


def write(path: Path) -> Path:
    """`model` in a GGUF file of byte-level BPE; the names are those of benchmark/accuracy/gguf_llama.py."""
    from gguf_llama import NAMES

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(258)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(_vocabulary())
    writer.add_token_merges(["w o", "1 2"])
    names = {value: key for key, value in NAMES.items()}
    for name, tensor in model().state_dict().items():
        values, parts = tensor.numpy(), name.split(".")
        if parts[1] == "layers":
            short = names[".".join(parts[3:-1])]
            heads = {"attn_q": 4, "attn_k": 2}.get(short)
            writer.add_tensor(f"blk.{parts[2]}.{short}.weight", _interleaved(values, heads) if heads else values)
        elif parts[0] != "lm_head":
            writer.add_tensor("token_embd.weight" if parts[1] == "embed_tokens" else "output_norm.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
