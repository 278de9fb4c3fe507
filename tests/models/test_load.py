"""Embeddings and heads stay as a checkpoint stores them, and give what its floats give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.io import CheckpointWarning, LossyError, PackedWeight, from_memory, open_checkpoint, save
from bittorch.models.io.checkpoint import EMBEDDING, HEAD
from bittorch.models.io.gguf_names import gguf_name
from bittorch.models.rules import activation_bits, named_tensors
from bittorch.nn import TernaryEmbeddingInference, TernaryLinearInference
from tests import helpers
from tests.models import tiny
from tests.models.io.gguf_files import NO_TOKENS, TYPE, write

IDS = torch.tensor(tiny.prompts(30))
TIED = tiny.changed(hidden_size=256, intermediate_size=256, head_dim=64)
OWN_HEAD = dataclasses.replace(TIED, tie_embeddings=False)


def load(config: ModelConfig, tensors: dict[str, Any], **options: Any) -> LanguageModel:
    return LanguageModel.from_checkpoint(from_memory(config, tensors, {}), LoadOptions(**options), tokenizer=False)


def opened(path: Path, **options: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(path, dtype=torch.float32, tokenizer=False, **options)


def logits(model: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return model(IDS)


def floats(weight: PackedWeight) -> Tensor:
    """By the definition of packed weights."""
    fields = weight.weight_packed[:, :, None] >> torch.tensor([0, 2, 4, 6]) & 3
    codes = torch.tensor([0.0, 1.0, -1.0])[fields.long()].flatten(1)
    scale = weight.scale.reshape(len(weight.scale), -1)
    return codes * scale.repeat_interleave(weight.in_features // scale.shape[1], 1)


def halved(weight: PackedWeight) -> PackedWeight:
    """With scales that float16 holds."""
    return dataclasses.replace(weight, scale=weight.scale.half().float())


def made(config: ModelConfig, scale: str = "channel", names: tuple[str, ...] = (EMBEDDING,)) -> dict[str, Any]:
    """Random tensors, those of these names ternary."""
    tensors = {
        name: halved(value) if isinstance(value, PackedWeight) else value
        for name, value in tiny.tensors(config).items()
    }
    for seed, name in enumerate(names):
        tensors[name] = halved(tiny.random_packed(config.vocab_size, config.hidden_size, 90 + seed, scale))
    return tensors


def assert_no_dense_table(model: LanguageModel) -> None:
    """No tensor of the model has a float for each entry of the vocabulary's table."""
    table = model.config.vocab_size * model.config.hidden_size
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    assert not [name for name, value in held if value.is_floating_point() and value.numel() >= table]


@pytest.mark.parametrize("scale", ["tensor", "channel", "64"])
def test_a_tied_ternary_embedding_is_looked_up_and_multiplied_packed(scale: str) -> None:
    tensors = made(TIED, scale)
    model = load(TIED, tensors)
    embedding, head = model.embed_tokens, model.lm_head
    assert isinstance(embedding, TernaryEmbeddingInference)
    assert isinstance(head, TernaryLinearInference)
    assert head.weight_packed is embedding.weight_packed
    assert head.activation_bits is None  # whatever the layers have
    assert_no_dense_table(model)
    dense = load(TIED, {**tensors, EMBEDDING: floats(tensors[EMBEDDING])})
    helpers.assert_same_bits(embedding(IDS), dense.embed_tokens(IDS))
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-5, atol=1e-5)
    assert dict(named_tensors(model)).keys() == tensors.keys()


def test_a_ternary_embedding_beside_a_ternary_head() -> None:
    tensors = made(OWN_HEAD, names=(EMBEDDING, HEAD))
    model = load(OWN_HEAD, tensors, activation_bits=None)
    assert_no_dense_table(model)
    assert model.lm_head.weight_packed is not model.embed_tokens.weight_packed
    dense = load(
        OWN_HEAD, {**tensors, **{name: floats(tensors[name]) for name in (EMBEDDING, HEAD)}}, activation_bits=None
    )
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-5, atol=1e-5)


def test_activations_have_the_dtype_of_the_model() -> None:
    model = load(TIED, made(TIED), dtype=torch.bfloat16)
    assert model.embed_tokens(IDS).dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16
    moved = model.half()  # one set of buffers after a cast
    assert moved.lm_head.weight_packed is moved.embed_tokens.weight_packed


@pytest.mark.parametrize(
    ("target", "scale"),
    [
        ("bittorch", "64"),
        ("bittorch-base3", "channel"),
        ("gguf-tq1_0", "tensor"),
        ("gguf-tq2_0", "channel"),
        ("gguf-q2_0", "64"),
        ("gguf-i2_s", "tensor"),
    ],
)
@pytest.mark.parametrize("config", [TIED, OWN_HEAD], ids=["tied", "own head"])
def test_files_keep_it_packed(config: ModelConfig, target: str, scale: str, tmp_path: Path) -> None:
    tensors = made(config, scale)
    model, path = load(config, tensors), tmp_path / ("x.gguf" if target.startswith("gguf") else "x")
    model.save_pretrained(path, to=target)
    with open_checkpoint(path) as found:
        assert found.info(EMBEDDING).ternary
        assert found.info(EMBEDDING).bytes < 300 * 256 * 3 / 8
        assert found.config.tie_embeddings == config.tie_embeddings
    again = opened(path)
    assert isinstance(again.embed_tokens, TernaryEmbeddingInference)
    helpers.assert_same_bits(logits(again), logits(model))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_files_of_gguf_py(kind: str, tmp_path: Path) -> None:
    """A file whose embedding gguf-py has written, which says what its floats are."""
    tensors = made(TIED, "tensor")
    dense = {name: floats(value) if isinstance(value, PackedWeight) else value for name, value in tensors.items()}
    values = {name: value.numpy() for name, value in dense.items()}
    write(tmp_path / "x.gguf", "bitnet-25", TIED, kind, values, embedding=kind, without=NO_TOKENS)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}[gguf_name(EMBEDDING)]
    model = opened(tmp_path / "x.gguf")
    assert_no_dense_table(model)
    theirs = torch.from_numpy(gguf.quants.dequantize(stored.data, TYPE[kind]))
    helpers.assert_same_bits(model.embed_tokens(torch.arange(300)), theirs)
    helpers.assert_same_bits(theirs, dense[EMBEDDING])
    torch.testing.assert_close(logits(model), logits(load(TIED, {**tensors, EMBEDDING: theirs})), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the model has activation_bits=8")
@pytest.mark.parametrize("target", ["bitnet", "compressed-tensors"])
def test_directories_for_other_programs_have_floats(target: str, tmp_path: Path) -> None:
    tensors = made(TIED, "tensor")
    model = load(TIED, tensors)
    with pytest.warns(CheckpointWarning, match=f"{EMBEDDING} of type ternary is written as floats"):
        model.save_pretrained(tmp_path / "x", to=target)
    with open_checkpoint(tmp_path / "x") as found:
        assert not found.info(EMBEDDING).ternary
        assert torch.equal(found.dense(EMBEDDING).float(), floats(tensors[EMBEDDING]))


def test_activation_bits_of_a_tied_head_are_kept(tmp_path: Path) -> None:
    model = load(TIED, made(TIED), activation_bits=16)
    assert activation_bits(model)[EMBEDDING] == 16
    assert HEAD not in activation_bits(model)
    model.save_pretrained(tmp_path / "x")
    again = opened(tmp_path / "x")
    assert again.lm_head.activation_bits == 16
    helpers.assert_same_bits(logits(again), logits(model))
    config, bits = dataclasses.replace(TIED, activation_bits=16), activation_bits(model)
    source = from_memory(config, dict(named_tensors(model)), {}, bits)
    with pytest.raises(LossyError, match=f"{EMBEDDING} has activation_bits=16, other embeddings have None"):
        save(source, tmp_path / "x.gguf", to="gguf-tq2_0")


def test_q2_0_with_a_fourth_value_is_no_ternary_embedding(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    save(from_memory(TIED, made(TIED), {}), path, to="gguf-q2_0")
    with open_checkpoint(path) as found:
        assert found.info(EMBEDDING).ternary
        stored, before = found.stored(EMBEDDING).stored, found.dense(EMBEDDING)
    raw = bytearray(path.read_bytes())
    raw[stored.offset + 2] |= 3
    path.write_bytes(raw)
    with open_checkpoint(path) as found:
        assert not found.info(EMBEDDING).ternary
        assert found.dense(EMBEDDING)[0, 0] == 2 * before[0].abs().max()
    assert logits(opened(path)).isfinite().all()
