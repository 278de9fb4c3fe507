"""Models whose weights stand in a rotated basis: what they compute is what the unrotated model computes."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bittorch.models import LanguageModel, LoadOptions, ModelConfig
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.decoder import products, tensor_shapes
from bittorch.models.hadamard import Hadamard, Rotated, of_note, to_note
from bittorch.models.io import CheckpointWarning, FormatError, LossyError, PackedWeight
from bittorch.models.io.stacks import stacked_name
from bittorch.models.io.ternary_tensor import dequantize
from tests.models import tiny

LLAMA = tiny.changed(architecture="llama", hidden_act="silu", activation_bits=None)
UNTIED = dataclasses.replace(LLAMA, tie_embeddings=False)
EXPERTS = {"num_experts": 3, "experts_per_token": 2, "expert_size": 32}
MOE = dataclasses.replace(UNTIED, architecture="qwen3_moe", **EXPERTS)
IDS = torch.tensor(tiny.prompts(9, seed=2))


def sylvester(size: int) -> Tensor:
    """By its definition, float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / size**0.5


def matrix(basis: Hadamard, width: int) -> Tensor:
    """``M`` with which a vector x becomes ``M x`` in the basis, float64."""
    blocks = torch.block_diag(*[sylvester(basis.block_size)] * (width // basis.block_size))
    return blocks @ torch.diag(torch.tensor(basis.signs.get(width, (1,) * width), dtype=torch.float64))


def signs(*widths: int) -> dict[int, tuple[int, ...]]:
    """Random ones."""
    torch.manual_seed(5)
    return {width: tuple((torch.randint(0, 2, (width,)) * 2 - 1).tolist()) for width in widths}


def every(config: ModelConfig, *, signed: bool = True, size: int = 32) -> Hadamard:
    """All weights of products and the embedding."""
    widths = products(config)
    found = signs(*set(widths.values())) if signed else {}
    return Hadamard(size, tuple({stacked_name(name): 1 for name in widths}), True, found)


def folded(tensors: dict[str, Any], basis: Hadamard) -> dict[str, Any]:
    """The same dense tensors in the basis: ``W M^T``, which is ``W diag(s) H``."""
    out = {}
    for name, value in tensors.items():
        rows = name == EMBEDDING and basis.embedding
        if rows or stacked_name(name) in basis.weights:
            value = (value.double() @ matrix(basis, value.shape[1]).T).float()
        out[name] = value
    return out


def opened(config: ModelConfig, tensors: dict[str, Any], **options: Any) -> LanguageModel:
    return LanguageModel.from_checkpoint(tiny.checkpoint(config, tensors), LoadOptions(**options), tokenizer=False)


@pytest.mark.parametrize("config", [LLAMA, UNTIED, MOE], ids=["tied", "untied", "experts"])
@pytest.mark.parametrize("signed", [True, False])
def test_logits_are_those_of_the_model_that_was_rotated(config: ModelConfig, signed: bool) -> None:
    plain, basis = tiny.tensors(config, ternary=False), every(config, signed=signed)
    turned = folded(plain, basis)
    expected = opened(config, plain)(IDS)
    model = opened(dataclasses.replace(config, hadamard=basis), turned)
    assert float((model(IDS) - expected).abs().max()) < 1e-4
    assert float((opened(config, turned)(IDS) - expected).abs().max()) > 0.1  # the rotation matters


def test_parts_of_a_fused_product_that_are_not_rotated_alike() -> None:
    names = [f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")]
    plain, basis = tiny.tensors(UNTIED, ternary=False), Hadamard(16, tuple(names), False, signs(64))
    config = dataclasses.replace(UNTIED, hadamard=basis, biases=("k_proj", "up_proj"))
    given = {**tiny.tensors(dataclasses.replace(config, hadamard=None), ternary=False), **plain}
    model = opened(config, folded(given, basis))
    expected = opened(dataclasses.replace(config, hadamard=None), given)
    assert float((model(IDS) - expected(IDS)).abs().max()) < 1e-4
    assert isinstance(model.layers[1].self_attn.qkv_proj, torch.nn.Linear)


@pytest.mark.parametrize("rows", [False, True], ids=["floats", "packed rows"])
def test_packed_weights_and_a_head_in_planes(rows: bool) -> None:
    """Ternary in the basis, dense out of it; the embedding, which is the head, either way."""
    basis = every(LLAMA)
    ternary = tiny.tensors(LLAMA) | ({EMBEDDING: tiny.random_packed(300, 64, 5)} if rows else {})
    dense = {
        name: dequantize(value, torch.float32) if isinstance(value, PackedWeight) else value
        for name, value in ternary.items()
    }
    plain = {  # M is orthogonal, so M^T is the way back
        name: (value.double() @ matrix(basis, value.shape[1])).float() if value.dim() == 2 else value
        for name, value in dense.items()
    }
    model = opened(dataclasses.replace(LLAMA, hadamard=basis), ternary, activation_bits=None)
    expected = opened(LLAMA, plain)(IDS)
    assert isinstance(model.layers[0].mlp.gate_up_proj, Rotated)
    assert float((model(IDS) - expected).abs().max()) < 1e-4
    planes = opened(dataclasses.replace(LLAMA, hadamard=basis), ternary, activation_bits=None, head_depth=6)
    assert float((planes(IDS) - expected).norm() / expected.norm()) < 0.01


def test_activations_are_quantised_in_the_basis() -> None:
    """W1.58A8: norm, rotation, then 127 steps of the largest magnitude; against float64."""
    config = dataclasses.replace(tiny.CONFIG, hadamard=every(tiny.CONFIG))
    tensors = tiny.tensors(config)
    model = opened(config, tensors)
    layer, x = model.layers[0], torch.randn(5, 64)
    norm = layer.input_layernorm
    found = layer.self_attn.qkv_proj(norm(x))[:, :64].double()
    z = norm(x).double() @ matrix(config.hadamard, 64).T
    step = z.abs().amax(1, keepdim=True) / 127
    w = dequantize(tensors["model.layers.0.self_attn.q_proj.weight"], torch.float32).double()
    expected = (z / step).round() * step @ w.T
    before = (norm(x).double() / (step := norm(x).double().abs().amax(1, keepdim=True) / 127)).round() * step
    assert float((found - expected).norm() / expected.norm()) < 1e-3  # a tie may round the other way
    assert float((before @ matrix(config.hadamard, 64).T @ w.T - expected).norm() / expected.norm()) > 2e-3


@pytest.mark.parametrize("to", ["bittorch", "bittorch-base3", "gguf-tq2_0", "gguf-q2_0"])
@pytest.mark.parametrize("config", [LLAMA, UNTIED], ids=["tied", "untied"])
def test_the_basis_is_saved(config: ModelConfig, to: str, tmp_path: Path) -> None:
    config = dataclasses.replace(config, hidden_size=256, head_dim=64, intermediate_size=512)
    config = dataclasses.replace(config, hadamard=every(config, size=256))
    model = opened(config, tiny.tensors(config))
    gguf = to.startswith("gguf")
    with pytest.warns(CheckpointWarning, match="PrismML's fork") if gguf else contextlib.nullcontext():
        model.save_pretrained(tmp_path / "x", to=to, allow_lossy=True)
    found = LanguageModel.from_pretrained(tmp_path / "x", tokenizer=False)
    assert found.config.hadamard == config.hadamard
    assert float((found(IDS) - model(IDS)).abs().max()) < (1e-2 if gguf else 1e-9)


def test_a_tied_head_in_planes_is_saved_with_its_basis(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, hadamard=every(LLAMA))
    model = opened(config, tiny.tensors(config), head_depth=3)
    model.save_pretrained(tmp_path / "x")
    found = LanguageModel.from_pretrained(tmp_path / "x", tokenizer=False)
    assert not found.config.tie_embeddings
    assert torch.equal(found(IDS), model(IDS))


@pytest.mark.parametrize("to", ["bitnet", "compressed-tensors"])
def test_formats_of_transformers_cannot_say_it(to: str, tmp_path: Path) -> None:
    config = dataclasses.replace(UNTIED, hadamard=every(UNTIED))
    with pytest.raises(LossyError, match=r"Hadamard blocks of 32, such as lm_head\.weight.*write bittorch or GGUF"):
        opened(config, tiny.tensors(config)).save_pretrained(tmp_path / "x", to=to, allow_lossy=True)


DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_size": 48}, r"block_size must be a power of two up to 32768, got 48"),
        ({"block_size": 65536}, r"got 65536"),
        ({"block_size": True}, r"got True"),
        ({"weights": ()}, r"weights must be names of weights, got \(\)"),
        ({"embedding": 1}, r"embedding must be True or False, got 1"),
        ({"signs": {40: (1,) * 40}}, r"width 40 are not cut into blocks of block_size=32"),
        ({"signs": {64: (1,) * 63}}, r"width 64 must be as many, got 63"),
        ({"signs": {64: (1,) * 63 + (0,)}}, r"sign 63 of width 64 must be 1 or -1, got 0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hadamard(**{"block_size": 32, "weights": (DOWN,), **values})


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (Hadamard(64, (DOWN,)), r"block_size=64 does not divide the 96 columns of model.layers.0.mlp.down_proj.weight"),
        (Hadamard(32, (DOWN,), False, signs(64)), r"signs are of widths 64, and .*down_proj.weight has 96 columns"),
        (
            Hadamard(32, ("model.layers.2.mlp.down_proj.weight",)),
            r"name 'model.layers.2.*', which no product",
        ),
        (Hadamard(32, ("model.norm.weight",)), r"name 'model.norm.weight', which no product"),
        (Hadamard(32, (DOWN,), True, signs(96)), r"signs are of widths 96, and the embedding has 64 columns"),
    ],
)
def test_what_does_not_fit_the_model(basis: Hadamard, message: str) -> None:
    config = dataclasses.replace(UNTIED, hadamard=basis)
    with pytest.raises(FormatError, match=message):
        tiny.checkpoint(config, tiny.tensors(UNTIED, ternary=False))


def test_a_tied_head_and_its_embedding_are_of_one_basis() -> None:
    for basis in (Hadamard(32, (HEAD,)), Hadamard(32, (DOWN,), True)):
        with pytest.raises(ValueError, match=r"lm_head\.weight, which is the embedding, is (one|none) of its weights"):
            dataclasses.replace(LLAMA, hadamard=basis)

    with pytest.raises(ValueError, match="hadamard must be a Hadamard or None, got dict"):
        dataclasses.replace(LLAMA, hadamard={"block_size": 32})


def test_notes_in_a_config() -> None:
    basis = every(UNTIED)
    assert of_note(to_note(basis)) == basis
    assert to_note(Hadamard(2, (DOWN,), False, {2: (1, -1)}))["signs"] == {"2": "+-"}
    good = to_note(basis)
    for note in (
        [],
        {},
        {**good, "more": 1},
        {**good, "weights": DOWN},
        {**good, "signs": []},
        {**good, "signs": {"64": "+" * 63 + "0"}},
        {**good, "signs": {"x": "+"}},
        {**good, "signs": {"64": [1] * 64}},
    ):
        with pytest.raises(ValueError, match="hadamard"):
            of_note(note)
    assert EMBEDDING in tensor_shapes(UNTIED)
