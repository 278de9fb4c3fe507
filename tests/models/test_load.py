"""Embeddings and heads stay as a checkpoint stores them, and give what its floats give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.blocks import BlockEmbedding, BlockLinear
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.io import (
    CheckpointWarning,
    FormatError,
    LossyError,
    PackedWeight,
    from_memory,
    open_checkpoint,
    save,
)
from bittorch.models.io.blocks import KINDS
from bittorch.models.io.gguf_names import gguf_name
from bittorch.models.io.gguf_writer import TYPE_IDS
from bittorch.models.packed_weight import BlockWeight
from bittorch.models.rules import activation_bits, named_tensors
from bittorch.nn import TernaryEmbeddingInference, TernaryLinearInference
from tests import helpers
from tests.models import tiny
from tests.models.io.gguf_files import NO_TOKENS, TYPE, write
from tests.ops.test_block_unpack import PY

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
    return helpers.dense(codes, weight.scale).float()


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


def dequantized(weight: BlockWeight) -> Tensor:
    """As gguf-py has it."""
    kind = gguf.GGMLQuantizationType(TYPE_IDS[weight.kind])
    return torch.from_numpy(gguf.quants.dequantize(weight.blocks.numpy(), kind)).reshape(300, 256)


def random_blocks(kind: str, seed: int = 0) -> BlockWeight:
    """A table of random codes, whose scales keep the variance of what it multiplies."""
    weights, size, scales = KINDS[kind]
    generator = helpers.seeded(seed)
    data = torch.randint(0, 256, (300, 256 // weights, size), dtype=torch.uint8, generator=generator)
    if kind == "MXFP4":
        data[:, :, 0] = data[:, :, 0] % 4 + 121
    spread = torch.rand(300, 256 // weights, 1, generator=generator) + 0.5

    def scaled(factor: Tensor) -> BlockWeight:
        for at in scales:
            data[:, :, at : at + 2] = (spread * factor).half().view(torch.uint8)
        return BlockWeight(data.flatten(1), kind, 256)

    return scaled(0.06 / dequantized(scaled(torch.ones(1))).std())


def file_of(path: Path, tensors: dict[str, Any], config: ModelConfig) -> None:
    """A GGUF file by gguf-py, its layers TQ2_0."""
    dense = {name: floats(value) if isinstance(value, PackedWeight) else value for name, value in tensors.items()}
    blocks = {name: value for name, value in dense.items() if isinstance(value, BlockWeight)}
    values = {name: value.numpy() for name, value in dense.items() if name not in blocks}
    raw = {gguf_name(name): (TYPE_IDS[value.kind], value.blocks.numpy()) for name, value in blocks.items()}
    write(path, "bitnet-25", config, "TQ2_0", values, without=NO_TOKENS, raw=raw)


@pytest.mark.parametrize("kind", PY)
@pytest.mark.parametrize("config", [TIED, OWN_HEAD], ids=["tied", "own head"])
def test_quantised_blocks_stay_as_they_are(config: ModelConfig, kind: str, tmp_path: Path) -> None:
    tensors = made(config, "tensor", ()) | {EMBEDDING: random_blocks(kind)}
    if not config.tie_embeddings:
        tensors[HEAD] = random_blocks(kind, 1)
    file_of(tmp_path / "x.gguf", tensors, config)
    model = opened(tmp_path / "x.gguf", head="stored")
    assert_no_dense_table(model)
    assert isinstance(model.embed_tokens, BlockEmbedding)
    assert isinstance(model.lm_head, BlockLinear)
    assert (model.lm_head.blocks is model.embed_tokens.blocks) == config.tie_embeddings
    theirs = {name: dequantized(value) for name, value in tensors.items() if isinstance(value, BlockWeight)}
    helpers.assert_same_bits(model.embed_tokens(IDS), theirs[EMBEDDING][IDS])
    expected = logits(load(config, tensors | theirs))
    assert 0.1 < float(expected.std()) < 30
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    alone = model(IDS[:, :1])
    helpers.assert_same_bits(alone[0, 0], model(IDS)[0, 0])  # whatever the batch


@pytest.mark.parametrize("target", ["bittorch", "gguf-tq2_0"])
def test_files_keep_blocks(target: str, tmp_path: Path) -> None:
    tensors = made(OWN_HEAD, "tensor", ()) | {EMBEDDING: random_blocks("Q4_K"), HEAD: random_blocks("Q6_K")}
    model, path = load(OWN_HEAD, tensors), tmp_path / ("x.gguf" if target.startswith("gguf") else "x")
    model.save_pretrained(path, to=target)
    with open_checkpoint(path) as found:
        for name in (EMBEDDING, HEAD):
            assert found.info(name).type == tensors[name].kind
            assert found.info(name).bytes == tensors[name].blocks.nbytes
    again = opened(path)
    helpers.assert_same_bits(logits(again), logits(model))
    again.save_pretrained(tmp_path / "again")  # and once more
    helpers.assert_same_bits(logits(opened(tmp_path / "again")), logits(model))


def test_a_head_in_planes_of_a_table_in_blocks() -> None:
    tensors = made(TIED, "tensor", ()) | {EMBEDDING: random_blocks("Q6_K")}
    model = load(TIED, tensors, head_depth=5)
    assert isinstance(model.embed_tokens, BlockEmbedding)
    assert isinstance(model.lm_head, TernaryLinearInference)
    dense = load(TIED, tensors | {EMBEDDING: dequantized(tensors[EMBEDDING])}, head_depth=5)
    helpers.assert_same_bits(logits(model), logits(dense))
    assert EMBEDDING in dict(named_tensors(model))


def test_bfloat16_activations_over_blocks() -> None:
    tensors = made(TIED, "tensor", ()) | {EMBEDDING: random_blocks("Q8_0")}
    model = load(TIED, tensors, dtype=torch.bfloat16)
    assert logits(model).dtype == model.embed_tokens(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "MXFP4"])
def test_scales_that_are_not_finite_are_found_on_loading(kind: str, tmp_path: Path) -> None:
    weight = random_blocks(kind)
    weights, size, scales = KINDS[kind]
    at = 256 // weights * size - size + (scales or (0,))[-1]
    weight.blocks[7, at : at + 2] = torch.tensor([255, 0x7C] if scales else [255, 0x77], dtype=torch.uint8)
    file_of(tmp_path / "x.gguf", made(TIED, "tensor", ()) | {EMBEDDING: weight}, TIED)
    place = f"at row 7, columns {256 - weights} to 255"
    with pytest.raises(FormatError, match=f"{EMBEDDING} has a scale that is not finite.* {place}"):
        opened(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": {EMBEDDING: "Q9"}}, "whole blocks of Q8_0, .*got 'Q9'"),
        ({"blocks": {EMBEDDING: 7}}, "got 7, U8"),
        ({"blocks": {EMBEDDING: "Q6_K", HEAD: "Q6_K"}}, "which its tensors contradict"),
        ({"blocks": 7}, "which its tensors contradict"),
        ({"blocks": {EMBEDDING: "Q2_0"}}, r"whole blocks of .*got 'Q2_0', U8 \(300, 210\)"),
    ],
)
def test_blocks_of_our_checkpoint_are_checked(change: dict, message: str, tmp_path: Path) -> None:
    save(from_memory(TIED, made(TIED, "tensor", ()) | {EMBEDDING: random_blocks("Q6_K")}, {}), tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["bittorch"])
    save_file(load_file(path), path, metadata={"bittorch": json.dumps(header | change)})
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x")


@pytest.mark.slow
def test_loading_takes_no_floats_for_the_table(tmp_path: Path) -> None:
    """What Python and torch allocate, but for the mapped file, is less than a dense table of halves."""
    config = dataclasses.replace(TIED, vocab_size=40000)
    table = random_blocks("Q6_K").blocks.repeat(134, 1)[:40000]
    file_of(tmp_path / "x.gguf", made(TIED, "tensor", ()) | {EMBEDDING: BlockWeight(table, "Q6_K", 256)}, config)
    code = f"""
import resource, torch
from bittorch.models import LanguageModel
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = LanguageModel.from_pretrained({str(tmp_path / "x.gguf")!r}, tokenizer=False)
with torch.inference_mode():
    model(torch.tensor([[1, 2]]))
print(peak() - before)
"""
    assert int(helpers.run_python(code).stdout) < 40000 * 256 * 2
