"""Qwen3.5 against transformers, from every place that it can come from, and its states in a cache."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bittorch.models import LanguageModel
from bittorch.models.decoder import products, tensor_shapes
from bittorch.models.hadamard import Hadamard
from bittorch.models.io import (
    Checkpoint,
    CheckpointWarning,
    FormatError,
    PackedWeight,
    convert,
    from_memory,
    open_checkpoint,
    save,
)
from bittorch.models.io.ternary_tensor import dequantize
from tests import helpers
from tests.models.architectures.agree import (
    IDS,
    assert_alike,
    assert_alike_from_everywhere,
    made,
    saved,
)
from tests.models.io.gguf_files import add_entry, hadamard_entries
from tests.models.io.tiny import LLAMA, random_scale
from tests.models.test_hadamard import folded, signs

DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 4,
    "head_dim": 32,
}


def hybrid(kind: str = "Qwen3_5", **changes: Any) -> Any:
    """Three layers of four with states, which forget slowly; norms far from 1."""
    net = made(kind, f"{kind}Text", **{**DELTA, **changes})
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4, -1)
            elif name.endswith("norm.weight"):
                parameter.sub_(0.7)
    return net


def test_models_of_every_origin(tmp_path: Path) -> None:
    net = hybrid()
    assert [hasattr(layer, "linear_attn") for layer in net.model.layers] == [True, True, True, False]
    assert_alike_from_everywhere(net, "qwen3_5", tmp_path)


def test_experts_in_every_layer(tmp_path: Path) -> None:
    """Of which transformers' files have all in one tensor, and no size of an MLP."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    net = hybrid("Qwen3_5Moe", **experts, shared_expert_intermediate_size=48)
    net.save_pretrained(tmp_path / "plain")
    values = json.loads((tmp_path / "plain" / "config.json").read_text())
    del values["intermediate_size"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(values))
    assert_alike(LanguageModel.from_pretrained(tmp_path / "plain", tokenizer=False), net)
    assert_alike_from_everywhere(net, "qwen3_5_moe", tmp_path)
    key = b"qwen35moe.feed_forward_length"
    data = (tmp_path / "x.gguf").read_bytes()
    assert data.count(key) == 1
    (tmp_path / "y.gguf").write_bytes(data.replace(key, b"general.".ljust(len(key), b"x")))
    assert LanguageModel.from_pretrained(tmp_path / "y.gguf", tokenizer=False).config.intermediate_size == 512


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"linear_num_value_heads": 2},
        {"linear_num_value_heads": 6, "linear_value_head_dim": 8},
        {"tie_word_embeddings": True, "layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2},
        {"linear_conv_kernel_dim": 2},
    ],
    ids=["a value head each", "three, of other size", "tied, other order", "short convolution"],
)
def test_other_sizes(changes: dict[str, Any], tmp_path: Path) -> None:
    net = hybrid(**changes)
    assert_alike_from_everywhere(net, "qwen3_5", tmp_path)


def entries(config: Any, beyond: int = 0) -> dict[str, Any]:
    """Of llama.cpp's converter."""
    recurrent = [kind == "linear_attention" for kind in config.layer_types] + [False] * beyond
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers + beyond,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.recurrent_layers": recurrent,
        "full_attention_interval": 4,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.head_dim // 4,
        "rope.dimension_sections": [11, 11, 10, 0],
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        **({"nextn_predict_layers": beyond} if beyond else {}),
    }


def regrouped(value: np.ndarray, net: Any, axis: int, size: int) -> np.ndarray:
    """Value heads in the order of llama.cpp's converter: the first of each key head, then the second of each."""
    keys, reps = net.config.linear_num_key_heads, net.config.linear_num_value_heads // net.config.linear_num_key_heads
    shape = value.shape
    parts = value.reshape(*shape[:axis], keys, reps, size, *shape[axis + 1 :])
    return np.ascontiguousarray(parts.swapaxes(axis, axis + 1)).reshape(shape)


def converted(net: Any, folder: Path, beyond: int = 0, extra: Any = None, only: Any = None, **changed: Any) -> Path:
    """The file that llama.cpp's converter makes: its names, values and orders, by gguf-py; some values changed."""
    config, arch = net.config, gguf.MODEL_ARCH.QWEN35
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers + beyond)
    writer = gguf.GGUFWriter(folder / "x.gguf", "qwen35")
    for key, value in {**(only or entries(config, beyond)), **(extra or {})}.items():
        add_entry(writer, key if key.startswith("prism") else f"qwen35.{key}", value)
    values = {name: value.numpy() for name, value in net.state_dict().items()}
    dim, keys = config.linear_value_head_dim, 2 * config.linear_num_key_heads * config.linear_key_head_dim
    for name, value in values.items():
        part = name.rpartition("linear_attn.")[2]
        if part == "A_log":
            value = regrouped(-np.exp(value), net, 0, 1)
        elif part == "dt_bias":
            name, value = name.replace("dt_bias", "dt_proj.bias"), regrouped(value, net, 0, 1)
        elif part in ("in_proj_a.weight", "in_proj_b.weight"):
            value = regrouped(value, net, 0, 1)
        elif part == "in_proj_z.weight":
            value = regrouped(value, net, 0, dim)
        elif part == "out_proj.weight":
            value = changed.get(name, regrouped(value, net, 1, dim))
        elif part in ("in_proj_qkv.weight", "conv1d.weight"):
            value = value.squeeze(1) if value.ndim == 3 else value
            value = np.concatenate((value[:keys], regrouped(value[keys:], net, 0, dim)))
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            value = value + 1
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), changed.get(name, value))
    if beyond:
        last = f"blk.{config.num_hidden_layers}"
        writer.add_tensor(f"{last}.nextn.eh_proj.weight", np.zeros((4, 8), np.float32))
        writer.add_tensor(f"{last}.attn_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "x.gguf"


def test_a_file_of_llama_cpp(tmp_path: Path) -> None:
    net = hybrid()
    path = converted(net, tmp_path)
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)
    convert(path, tmp_path / "own", to="bittorch", allow_dense=True)
    assert_alike(LanguageModel.from_pretrained(tmp_path / "own", tokenizer=False), net)


def test_our_files_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """The same names, shapes, entries, and values but for the last bits."""
    net = hybrid()
    theirs = gguf.GGUFReader(converted(net, tmp_path))
    net.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours.gguf", to="gguf-tq2_0", allow_dense=True)
    ours = gguf.GGUFReader(tmp_path / "ours.gguf")
    found = {tensor.name: tensor for tensor in ours.tensors}
    assert found.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        assert found[tensor.name].shape.tolist() == tensor.shape.tolist()
        np.testing.assert_allclose(found[tensor.name].data, tensor.data, rtol=1e-6, atol=1e-7)
    for key, field in theirs.fields.items():
        if key.startswith("qwen35."):
            assert ours.fields[key].contents() == pytest.approx(field.contents()), key


@pytest.mark.slow
@pytest.mark.parametrize("interval", [None, 2])
def test_layers_by_their_interval(interval: int | None, tmp_path: Path) -> None:
    """Files may say which layers attend by a number alone, which is 4 where nothing is said."""
    kinds = ["full_attention" if (layer + 1) % (interval or 4) == 0 else "linear_attention" for layer in range(4)]
    net = hybrid(layer_types=kinds)
    given = {key: value for key, value in entries(net.config).items() if "layers" not in key and "interval" not in key}
    given |= {"full_attention_interval": interval} if interval else {}
    path = converted(net, tmp_path, only=given)
    assert_alike(LanguageModel.from_pretrained(path, tokenizer=False), net)
    folder = saved(net, tmp_path / "hf", layer_types=None, full_attention_interval=interval or 4)
    assert_alike(LanguageModel.from_pretrained(folder, tokenizer=False), net)


def test_layers_beyond_the_next_token_are_left_out_of_a_file(tmp_path: Path) -> None:
    net = hybrid()
    with pytest.warns(CheckpointWarning, match=r"2 tensors are of 1 layers .* such as blk\.4\.nextn\.eh_proj\.weight"):
        found = LanguageModel.from_pretrained(converted(net, tmp_path, 1), tokenizer=False)
    assert found.config.num_layers == 4
    assert_alike(found, net)


def test_the_part_for_text_of_a_directory(tmp_path: Path) -> None:
    """As the published models have it: text_config, names of their own, and what sees images and predicts further."""
    net = hybrid()
    net.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model."): value for name, value in tensors.items()}
    more = {"mtp.fc.weight": torch.ones(2, 2), "model.visual.blocks.0.norm1.weight": torch.ones(2)}
    save_file({**renamed, **more}, tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "qwen3_5", "text_config": values, "vision_config": {}, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.warns(CheckpointWarning, match=r"2 tensors are of parts .* such as model\.visual\.blocks"):
        found = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert_alike(found, net)


def test_rotated_weights_and_value_heads_by_group(tmp_path: Path) -> None:
    """As Ternary-Bonsai has it: all products but those of two numbers a head; ssm_out in the order of groups."""
    net = hybrid(head_dim=32)
    plain = LanguageModel.from_transformers(net)
    every = products(plain.config).items()
    widths = {name: n for name, n in every if not name.endswith(("in_proj_a.weight", "in_proj_b.weight"))}
    basis = Hadamard(32, tuple(widths), True, signs(*set(widths.values())))
    turned = copy.deepcopy(net)
    turned.load_state_dict(folded(net.state_dict(), basis))
    outputs = {name: value.numpy() for name, value in turned.state_dict().items() if name.endswith("out_proj.weight")}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN35, 4)
    stored = [names.get_name(name, try_suffixes=(".weight",)) for name in basis.weights]
    extra = hadamard_entries(basis, stored, gdn_v_grouped=True)
    found = LanguageModel.from_pretrained(converted(turned, tmp_path, extra=extra, **outputs), tokenizer=False)
    assert_alike(found, net)
    with pytest.warns(CheckpointWarning, match="PrismML"):
        found.save_pretrained(tmp_path / "y.gguf", to="gguf-tq2_0")
    assert_alike(LanguageModel.from_pretrained(tmp_path / "y.gguf", tokenizer=False), net)
    for changes in ({"prism.hadamard.gdn_v_grouped": False}, {"prism.hadamard.gdn_v_grouped": 1}):
        with pytest.raises(FormatError, match=r"gdn_v_grouped .*, which must be true"):
            open_checkpoint(converted(turned, tmp_path, extra={**extra, **changes}, **outputs))


PACKED = dataclasses.replace(
    LLAMA,
    architecture="qwen3_5",
    rms_norm_eps=1e-6,
    rotary_dim=16,
    norms_from_one=True,
    activation_bits=8,
    layer_types=("linear_attention", "full_attention"),
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=64,
    delta_value_dim=64,
    delta_kernel=4,
)


def packed(scale: str) -> Checkpoint:
    """Ternary products, the rest random."""
    tensors: dict[str, Any] = {}
    widths = products(PACKED)
    for seed, (name, shape) in enumerate(tensor_shapes(PACKED).items()):
        if name in widths and name != "lm_head.weight":
            codes = helpers.pack(helpers.random_codes(*shape, seed))
            tensors[name] = PackedWeight(codes, random_scale(scale, *shape, seed), shape[1])
        else:
            tensors[name] = helpers.randn(*shape, seed=seed) * 0.3
    return from_memory(PACKED, tensors, {})


@pytest.mark.parametrize(
    ("scale", "to"),
    [
        ("tensor", "bitnet"),
        ("tensor", "gguf-i2_s"),
        ("channel", "gguf-tq1_0"),
        ("group64", "gguf-q2_0"),
        ("group64", "bittorch-base3"),
        ("group256", "gguf-tq2_0"),
    ],
)
def test_packed_weights_keep_their_trits_and_scales(scale: str, to: str, tmp_path: Path) -> None:
    """Value heads of 64 channels, which move as rows and as columns of packed weights, and come back."""
    source = packed(scale)
    save(source, tmp_path / "x", to=to)
    expected = LanguageModel.from_checkpoint(source, tokenizer=False)(IDS % 24)
    with open_checkpoint(tmp_path / "x") as found:
        for name in source.names:
            if source.info(name).ternary:
                one, other = source.packed(name), found.packed(name)
                assert torch.equal(one.weight_packed, other.weight_packed), name
                assert torch.equal(one.scale, other.scale), name
        again = LanguageModel.from_checkpoint(found, tokenizer=False)(IDS % 24)
    assert helpers.relative_l2(again, expected) < 1e-3  # a rounded norm may move an activation by a step


def test_columns_of_blocks_that_heads_cut_apart(tmp_path: Path) -> None:
    """A file has scales of 256 columns where a head has 64: read, each head keeps its own; written, they merge."""
    source = packed("group256")
    save(source, tmp_path / "x.gguf", to="gguf-tq2_0")
    name = "model.layers.0.linear_attn.out_proj.weight"
    order = torch.arange(256).view(2, 2, 64).transpose(0, 1).flatten()
    stored = gguf.GGUFReader(tmp_path / "x.gguf")
    (tensor,) = [tensor for tensor in stored.tensors if tensor.name == "blk.0.ssm_out.weight"]
    raw = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.array_equal(raw, dequantize(source.packed(name), torch.float32).numpy()[:, order])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_num_value_heads": 3}, r"delta_value_heads=3 is no multiple of delta_key_heads=2"),
        ({"linear_num_key_heads": 0}, r"delta_key_heads must be an integer from 1 on, got 0"),
        ({"linear_conv_kernel_dim": 1}, r"delta_kernel must be an integer from 2 on, got 1"),
        ({"linear_key_head_dim": "16"}, r"delta_key_dim must be an integer from 1 on, got '16'"),
        ({"linear_key_head_dim": 10**12}, r"delta_key_dim must be an integer from 1 on, got 1000000000000"),
        ({"linear_value_head_dim": 8}, r"in_proj_qkv.weight must be \(96, 64\) by the configuration, got \(128, 64\)"),
        ({"layer_types": ["linear_attention"]}, r"layer_types has 1 values for 4 layers"),
        ({"layer_types": None, "full_attention_interval": 0}, r"full_attention_interval must be a positive .*, got 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.01}}, r"leave channels to rotate of head_dim=32, got 0\.01"),
        ({"rope_parameters": {"partial_rotary_factor": -1}}, r"partial_rotary_factor must be up to 1 .*, got -1"),
        ({"head_dim": "32"}, r"head_dim must be a positive integer, got '32'"),
        ({"attn_output_gate": False}, r"attn_output_gate False, which changes what the model computes"),
    ],
)
def test_a_config_that_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(saved(hybrid(), tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm.inner_size": 63}, r"ssm.inner_size 63 is not cut into ssm.time_step_rank 4 heads"),
        ({"ssm.time_step_rank": 0}, r"ssm.inner_size 64 is not cut into ssm.time_step_rank 0 heads"),
        ({"nextn_predict_layers": 4}, r"nextn_predict_layers 4 must be less than block_count 4"),
        ({"attention.recurrent_layers": [1, 1, 1, 0]}, r"it must be true or false for each layer"),
        ({"attention.recurrent_layers": 4}, r"must be true or false for each layer, got 4"),
        (
            {"ssm.group_count": 2**30, "ssm.time_step_rank": 2**31 - 2**30, "ssm.inner_size": 2**30},
            r"in_proj_qkv.weight must be \(35433480192, 64\) by the configuration",
        ),
        ({"ssm.group_count": 4}, r"must be .* by the configuration"),
    ],
)
def test_a_file_that_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        open_checkpoint(converted(hybrid(), tmp_path, extra=changes))
