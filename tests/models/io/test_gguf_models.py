"""Models from GGUF files that say less, or more, than our writer: logits against transformers with the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bittorch.models import LanguageModel, ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import CheckpointWarning, open_checkpoint, save
from tests import helpers
from tests.models.io.gguf_files import write
from tests.models.io.tiny import BITNET, LLAMA, model

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 24, (2, 20), generator=helpers.seeded(3))


def theirs(config: ModelConfig, **more: Any) -> nn.Module:
    """transformers' model of these sizes, with values of trained size."""
    bitnet = config.architecture == "bitnet"
    kind = transformers.BitNetConfig if bitnet else transformers.LlamaConfig
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    made = kind(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        hidden_act=config.hidden_act,
        tie_word_embeddings=config.tie_embeddings,
        **{"rope_parameters": rope, **more},
    )
    torch.manual_seed(0)
    net = (transformers.BitNetForCausalLM if bitnet else transformers.LlamaForCausalLM)(made).eval()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return net


def values(net: nn.Module, config: ModelConfig) -> dict[str, np.ndarray]:
    state = net.state_dict()
    return {name: state[name].numpy() for name in tensor_shapes(config)}


@torch.inference_mode()
def logits(net: Any) -> Tensor:
    found = net(IDS)
    return found if isinstance(found, Tensor) else found.logits


def ours(path: Path, **options: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(path, tokenizer=False, activation_bits=None, **options)


def test_bitnet_without_an_activation_runs_relu2(tmp_path: Path) -> None:  # FIELD L1
    net = theirs(BITNET)
    write(tmp_path / "x.gguf", "bitnet", BITNET, "F32", values(net, BITNET))
    with pytest.warns(CheckpointWarning, match=r"no entry bitnet\.hidden_activation\. relu2 is taken"):
        found = ours(tmp_path / "x.gguf")
    assert float((logits(found) - logits(net)).abs().max()) < 1e-4
    other = ours(tmp_path / "x.gguf", hidden_act="silu")
    silu = theirs(dataclasses.replace(BITNET, hidden_act="silu"))
    assert float((logits(other) - logits(silu)).abs().max()) < 1e-4
    assert float((logits(other) - logits(found)).abs().max()) > 0.1


def test_biases_of_q_k_v_without_one_of_o(tmp_path: Path) -> None:  # FIELD L14
    config = dataclasses.replace(LLAMA, biases=("q_proj", "k_proj", "v_proj"))
    net = theirs(LLAMA, attention_bias=True)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("o_proj.bias"):
                parameter.zero_()
    write(tmp_path / "x.gguf", "llama", config, "F32", values(net, config))
    found = ours(tmp_path / "x.gguf")
    assert found.config.biases == ("q_proj", "k_proj", "v_proj")
    assert float((logits(found) - logits(net)).abs().max()) < 1e-4
    found.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(ours(tmp_path / "own")), logits(found))


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_positions_scaled_without_a_type(key: str, tmp_path: Path) -> None:  # FIELD L8
    net = theirs(LLAMA, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": LLAMA.rope_theta})
    write(tmp_path / "x.gguf", "llama", LLAMA, "F32", values(net, LLAMA), {f"llama.{key}": 4.0})
    assert float((logits(ours(tmp_path / "x.gguf")) - logits(net)).abs().max()) < 1e-4


def test_i2_s_of_llama_runs_with_8_bit_activations(tmp_path: Path) -> None:  # FIELD L9
    """As bitnet.cpp runs it; our own entry, and the option, say otherwise."""
    path = tmp_path / "x.gguf"
    with pytest.warns(CheckpointWarning, match=r"activation_bits=None, which bittorch alone reads"):
        save(model(LLAMA), path, to="gguf-i2_s")
    with open_checkpoint(path) as found:
        assert found.config.activation_bits is None
    content = path.read_bytes()
    assert content.count(b"bittorch.activation_bits") == 1
    path.write_bytes(content.replace(b"bittorch.activation_bits", b"general.nothing_to_say__"))
    with open_checkpoint(path) as found:
        assert found.config.activation_bits == 8
    implied, said, floating = (
        LanguageModel.from_pretrained(path, tokenizer=False, dtype=torch.float32, **options)
        for options in ({}, {"activation_bits": 8}, {"activation_bits": None})
    )
    assert torch.equal(logits(implied), logits(said))
    assert not torch.equal(logits(implied), logits(floating))
