"""Directories of transformers and compressed-tensors, written by them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations import bitnet as reference

from bittorch.models import LanguageModel
from bittorch.models.io import CheckpointWarning, FormatError, PackedWeight, convert, from_memory, open_checkpoint, save
from bittorch.models.pretokenizers import LLAMA3
from tests.helpers import randn, relative_l2
from tests.models.io.tiny import BITNET, LLAMA, model, tensors

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _eager():
    """transformers decorates its BitNet layers with torch.compile, which takes minutes for what eager does at once."""
    with torch.compiler.set_stance("force_eager"):
        yield


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 300.0},
        {"rope_scaling": LINEAR},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 300.0},
        {"rope_scaling": {"rope_theta": 100.0, "rope_type": "default"}},
    ],
    ids=str,
)
def test_contradicting_rotations_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Configurations that have the older entries beside rope_parameters, and both differ."""
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 7.0}))
    net.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.warns(CheckpointWarning, match=r"rope_parameters .* as transformers does") as caught:
        ours = LanguageModel.from_pretrained(tmp_path, tokenizer=False)
    assert [warning.message.choice for warning in caught] == ["hf-rope"]
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
        assert relative_l2(ours(tokens), theirs) < 1e-5


def test_swish_is_silu(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="swish")).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.hidden_act == "silu"


def bitnet_model(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return BitNetForCausalLM(BitNetConfig(**SIZES, **more))


def write(path: Path, net: nn.Module, state: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> None:
    path.mkdir(exist_ok=True)
    values = net.config.to_dict()
    if quantization is not None:
        values["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(values, default=str))
    save_file({name: value.contiguous() for name, value in state.items()}, path / "model.safetensors")


def packed_state(net: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Projections packed by transformers' own function, each with a scale of its own."""
    state = {}
    for number, (name, value) in enumerate(net.state_dict().items()):
        state[name] = value
        if name.endswith("_proj.weight"):
            codes = torch.randint(-1, 2, value.shape, generator=torch.Generator().manual_seed(number)).float()
            state[name] = reference.pack_weights(codes)
            state[f"{name}_scale"] = torch.tensor([0.5 + number / 8]).to(dtype)
        elif name.endswith("_proj.bias"):
            state[name] = randn(*value.shape, seed=number)
    return state


@pytest.mark.parametrize("kind", ["llama", "bitnet"])
@pytest.mark.parametrize("shards", ["1GB", "40KB"])
def test_dense_models(kind: str, shards: str, tmp_path: Path) -> None:
    net = bitnet_model() if kind == "bitnet" else LlamaForCausalLM(LlamaConfig(**SIZES, rope_theta=1234.0))
    net.bfloat16().save_pretrained(tmp_path, max_shard_size=shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards != "1GB")
    with open_checkpoint(tmp_path) as found:
        assert found.format == "safetensors"
        assert found.config.hidden_act == ("relu2" if kind == "bitnet" else "silu")
        assert found.config.rope_theta == (500000.0 if kind == "bitnet" else 1234.0)
        assert found.config.architecture == kind
        assert found.config.activation_bits is None
        assert found.tokenizer_source == tmp_path
        state = net.state_dict()
        assert set(found.names) == set(state)
        for name in found.names:
            assert torch.equal(found.dense(name), state[name])
            assert not found.info(name).ternary
            with pytest.raises(ValueError, match="not ternary"):
                found.packed(name)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitnet"},
        {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"},
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    ],
)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_transformers_computes(
    quantization: dict[str, Any], scale_dtype: torch.dtype, tmp_path: Path
) -> None:
    """Each layer against the module of transformers that its linear_class names, biases included."""
    net = bitnet_model(attention_bias=True)
    state = packed_state(net, scale_dtype)
    write(tmp_path, net, state, quantization)
    auto = quantization.get("linear_class") == "autobitlinear"
    with open_checkpoint(tmp_path) as found:
        assert found.format == "bitnet"
        assert found.config.activation_bits == 8
        for name in (name for name in found.names if name.endswith("_proj.weight")):
            module = name.removesuffix(".weight")
            n, k = found.info(name).shape
            has_bias = f"{module}.bias" in state
            layer = (reference.AutoBitLinear if auto else reference.BitLinear)(k, n, has_bias, dtype=torch.float32)
            codes = reference.unpack_weights(state[name], torch.float32)
            layer.weight = nn.Parameter(codes) if auto else nn.Buffer(state[name])
            layer.weight_scale = state[f"{name}_scale"]
            if has_bias:
                layer.bias = (nn.Parameter if auto else nn.Buffer)(state[f"{module}.bias"])
            x = randn(3, k, seed=9)
            factor = 127 / x.abs().amax(1, keepdim=True)
            rounded = (x * factor).round() / factor
            bias = found.dense(f"{module}.bias") if has_bias else None
            ours = F.linear(rounded, found.dense(name), bias)
            assert torch.allclose(ours, layer(x), rtol=1e-4, atol=1e-4)
            packed = found.packed(name)
            assert torch.equal(packed.scale, (1 / state[f"{name}_scale"].float(), state[f"{name}_scale"].float())[auto])


def test_trits_stored_one_by_one(tmp_path: Path) -> None:
    """Offline autobitlinear also loads weights that are not packed, and multiplies them."""
    net = bitnet_model()
    state = packed_state(net)
    for name in [name for name in state if name.endswith("_proj.weight")]:
        state[name] = reference.unpack_weights(state[name], torch.bfloat16)
    mode = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    write(tmp_path, net, state, mode)
    name = "model.layers.1.mlp.down_proj.weight"
    with open_checkpoint(tmp_path) as found:
        assert torch.equal(found.dense(name), state[name].float() * state[f"{name}_scale"])
    state[name][3, 5] = 0.5
    write(tmp_path, net, state, mode)
    with open_checkpoint(tmp_path) as found, pytest.raises(FormatError, match="must be -1, 0 or 1"):
        found.packed(name)


def test_master_weights_are_quantised_where_the_configuration_says_so(tmp_path: Path) -> None:
    net = bitnet_model()
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    write(tmp_path, net, net.state_dict(), {**online, "modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]})
    with open_checkpoint(tmp_path) as found:
        assert found.format == "bitnet-online"
        for name in (name for name in found.names if name.endswith("_proj.weight")):
            master = net.state_dict()[name]
            if name.startswith("model.layers.1.mlp"):
                assert not found.info(name).ternary
                assert torch.equal(found.dense(name), master)
            else:
                theirs = reference.WeightQuant.apply(master)
                assert torch.equal(theirs.sign(), found.dense(name).sign())
                assert torch.allclose(found.dense(name), theirs, rtol=1e-6)
        assert not found.info("lm_head.weight").ternary
    write(tmp_path, net, net.state_dict(), online)  # nothing said: all but the head
    with open_checkpoint(tmp_path) as found:
        ternary = {name for name in found.names if found.info(name).ternary}
        assert ternary == {name for name in found.names if name.endswith("_proj.weight")}
    write(tmp_path, net, net.state_dict(), None)
    with open_checkpoint(tmp_path) as found:
        assert not any(found.info(name).ternary for name in found.names)
        assert found.config.activation_bits is None


def test_first_bitnet_models(tmp_path: Path) -> None:
    """Old names of the sub-norms, and a configuration that says weight_bits and no quantization_config."""
    net = bitnet_model()
    renamed = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    state = {}
    for name, value in net.state_dict().items():
        old = next((name.replace(new, old) for new, old in renamed.items() if new in name), name)
        state[old] = value
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write(tmp_path, net, state, None)
    values = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "llama", "weight_bits": 1}
    values = {key: value for key, value in values.items() if key != "rope_parameters"} | {"rope_theta": 77.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with open_checkpoint(tmp_path) as found:
        assert set(found.names) == set(net.state_dict())
        assert found.info("model.layers.0.mlp.up_proj.weight").ternary
        assert found.config.architecture == "bitnet"
        assert found.config.rope_theta == 77.0


def test_our_bitnet_directory_loads_into_transformers(tmp_path: Path) -> None:
    """As transformers would: the state dict, unpacked by its own function, in its own model."""
    source = model()
    save(source, tmp_path / "out", to="bitnet")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    config = BitNetConfig(**{key: value for key, value in values.items() if key != "quantization_config"})
    net = BitNetForCausalLM(config)
    state = load_file(tmp_path / "out" / "model.safetensors")
    for name in list(state):
        if name.endswith("weight_scale"):
            weight = name.removesuffix("_scale")
            state[weight] = reference.unpack_weights(state[weight], torch.float32) * state.pop(name)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    net.load_state_dict(state)
    for name in source.names:
        assert torch.equal(
            net.state_dict()[name],
            source.dense(name).float() if not source.info(name).ternary else _dense(source, name),
        )
    assert values["quantization_config"]["linear_class"] == "autobitlinear"
    assert values["quantization_config"]["modules_to_not_convert"] == ["lm_head"]
    assert config.rope_parameters["rope_theta"] == BITNET.rope_theta


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@torch.inference_mode()
def test_transformers_opens_our_bitnet_directory(stored: torch.dtype, tmp_path: Path) -> None:
    """FIELD L6: GGUF keeps vectors in float32 beside a half embedding, and transformers runs one dtype alone."""
    pytest.importorskip("accelerate", reason="transformers needs it for quantised models")
    values = tensors(BITNET, dtype=stored)
    save(from_memory(BITNET, values, {}), tmp_path / "x.gguf", to="gguf-i2_s")
    convert(tmp_path / "x.gguf", tmp_path / "out", to="bitnet")
    wanted = torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {v.dtype for name, v in state.items() if v.is_floating_point() and not name.endswith("_scale")} == {wanted}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor([[0, 5, 9, 3, 17, 20, 2, 23]])
    ours = LanguageModel.from_pretrained(tmp_path / "x.gguf", dtype=torch.float32, tokenizer=False)(tokens)
    got = theirs(tokens).logits
    assert got.dtype == wanted
    loaded = theirs.state_dict()
    for name, value in values.items():
        if isinstance(value, PackedWeight):
            assert torch.equal(loaded[name].float(), unpacked(value))
            assert torch.equal(loaded[f"{name}_scale"].float(), value.scale.to(wanted).float())
        else:
            assert torch.equal(loaded[name].float(), value.float())
    # 8-bit activations flip with the last bits of what comes before: in bfloat16 logits agree in the large alone.
    assert relative_l2(got.float(), ours) < (0.5 if wanted == torch.bfloat16 else 0.02)


def unpacked(weight: PackedWeight) -> torch.Tensor:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    fields = (weight.weight_packed[:, :, None] >> shifts) & 3
    return ((fields == 1).float() - (fields == 2).float()).flatten(1)


@pytest.mark.parametrize("to", ["bitnet", "compressed-tensors"])
def test_floats_of_one_directory_have_one_dtype(to: str, tmp_path: Path) -> None:
    """The one they have, bfloat16 where it holds all of them, else float32; what is asked for in any case."""
    config = dataclasses.replace(LLAMA, activation_bits=8)
    values = tensors(config, dtype=torch.float16)

    def written(name: str, **options: Any) -> set[torch.dtype]:
        save(from_memory(config, values, {}), tmp_path / name, to=to, **options)
        state = load_file(tmp_path / name / "model.safetensors")
        return {value.dtype for key, value in state.items() if value.is_floating_point() and "_scale" not in key}

    assert written("same") == {torch.float16}
    values["model.norm.weight"] = values["model.norm.weight"].float()
    assert written("wide") == {torch.float32}
    assert written("asked", dense_dtype=torch.float16) == {torch.float16}
    values |= {name: value.bfloat16().half() for name, value in values.items() if not isinstance(value, PackedWeight)}
    values["model.norm.weight"] = values["model.norm.weight"].bfloat16()
    assert written("narrow") == {torch.bfloat16}


def _dense(source: Any, name: str) -> torch.Tensor:
    weight = source.packed(name)
    scale = weight.scale if weight.scale.dim() == 2 else weight.scale[:, None]
    codes = unpacked(weight)
    return (codes.view(len(codes), scale.shape[1], -1) * scale[:, :, None]).flatten(1)


@pytest.mark.parametrize("scale", ["tensor", "channel", "group64"])
def test_compressed_tensors_decompresses_ours(scale: str, tmp_path: Path) -> None:
    """compressed-tensors itself reads the configuration and unpacks the weights."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    source = model(scale=scale)
    save(source, tmp_path / "out", to="compressed-tensors")
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert values.pop("quant_method") == "compressed-tensors"
    schemes = QuantizationConfig.model_validate(values)
    assert schemes.ignore == ["lm_head"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    (scheme,) = schemes.config_groups.values()
    assert scheme.targets == ["Linear"]
    for name in (name for name in source.names if source.info(name).ternary):
        prefix = name.removesuffix("weight")
        parts = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        found = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        assert torch.equal(found.float(), _dense(source, name))


def test_files_open_with_the_safetensors_library(tmp_path: Path) -> None:
    for to in ("bittorch", "bittorch-base3", "bitnet", "compressed-tensors"):
        save(model(), tmp_path / to, to=to)
        assert load_file(tmp_path / to / "model.safetensors")


def test_tokenizer_files_travel(tmp_path: Path) -> None:
    first = tmp_path / "first"
    save(model(), first, to="bittorch")
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 4}, "merges": [["a", "b"]]},
        "added_tokens": [{"id": 5, "content": "<end>", "special": True}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": LLAMA3}},
    }
    (first / "tokenizer.json").write_text(json.dumps(tokenizer))
    (first / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }} ü"}))
    convert(first, tmp_path / "second.gguf", to="gguf-tq2_0")
    with open_checkpoint(tmp_path / "second.gguf") as found:
        entries = found.tokenizer_source
        assert entries["tokenizer.ggml.tokens"][:6] == ["a", "b", "[PAD2]", "[PAD3]", "ab", "<end>"]
        assert entries["tokenizer.ggml.token_type"][:6] == [1, 1, 5, 5, 1, 3]
        assert entries["tokenizer.ggml.merges"] == ["a b"]
        assert entries["tokenizer.ggml.pre"] == "llama-bpe"
        assert entries["tokenizer.chat_template"] == "{{ messages }} ü"
    convert(tmp_path / "second.gguf", tmp_path / "third", to="bitnet")
    assert json.loads((tmp_path / "third" / "tokenizer.json").read_text()) == tokenizer
    assert (tmp_path / "third" / "chat_template.jinja").read_text() == "{{ messages }} ü"
    convert(tmp_path / "third", tmp_path / "fourth", to="bittorch")
    assert (tmp_path / "fourth" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_entries_of_a_gguf_tokenizer_travel(tmp_path: Path) -> None:
    """Where there is no tokenizer.json the entries go through a directory and back, bytes that are no UTF-8 too."""
    entries = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "\udcff", "é"],
        "tokenizer.ggml.scores": [0.0, -1.5, 2.25],
        "tokenizer.ggml.token_type": [1, 6, 3],
        "tokenizer.ggml.add_bos_token": True,
    }
    save(model(tokenizer=entries), tmp_path / "one.gguf", to="gguf-tq2_0")
    convert(tmp_path / "one.gguf", tmp_path / "two", to="bittorch")
    convert(tmp_path / "two", tmp_path / "three.gguf", to="gguf-tq1_0")
    with open_checkpoint(tmp_path / "three.gguf") as found:
        assert {key: found.tokenizer_source[key] for key in entries} == entries


def test_views_outlive_the_checkpoint(tmp_path: Path) -> None:
    save(model(), tmp_path / "out", to="bittorch")
    with open_checkpoint(tmp_path / "out") as found:
        name = "model.layers.0.mlp.up_proj.weight"
        packed, embedding = found.packed(name), found.dense("model.embed_tokens.weight")
        with pytest.raises(KeyError, match=r"no tensor 'x'"):
            found.dense("x")
    assert torch.equal(packed.weight_packed, model().packed(name).weight_packed)
    assert torch.equal(embedding, model().dense("model.embed_tokens.weight"))
    packed.weight_packed.zero_()  # private: the file is not written
    with open_checkpoint(tmp_path / "out") as found:
        assert torch.equal(found.packed(name).weight_packed, model().packed(name).weight_packed)


@pytest.mark.parametrize("to", ["bittorch", "bittorch-base3", "bitnet", "gguf-tq2_0"])
def test_released_views_stay_valid(to: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as found:
        for name in found.names:
            value = found.packed(name).weight_packed if found.info(name).ternary else found.dense(name)
            before = value.clone()
            found.release(name)
            assert torch.equal(value, before)


@pytest.mark.parametrize("to", ["bittorch", "bitnet", "gguf-tq2_0"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_copies_are_no_views(to: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    save(model(), tmp_path / "out", to=to)
    with open_checkpoint(tmp_path / "out") as found:
        for name in found.names:
            one, other = found.dense(name, dtype, copy=True), found.dense(name, dtype)
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
            one.zero_()
            assert not torch.equal(found.dense(name, dtype), one)
