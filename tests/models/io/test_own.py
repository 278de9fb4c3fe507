"""Our own directories: the file is the one of `bittorch.utils`, and both read it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import bittorch
from bittorch.models.config import EMBEDDING
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import FormatError, PackedWeight, from_memory, open_checkpoint, save
from bittorch.quant import pack_trit_planes
from tests.helpers import pack, random_codes
from tests.models.io.tiny import BITNET, assert_same, model, tensors


def skeleton() -> nn.Module:
    """Modules of the right names and shapes, and nothing that runs."""
    root = nn.Module()
    for name, shape in tensor_shapes(BITNET).items():
        *path, last, _ = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        if last.endswith("_proj"):
            parent.add_module(last, nn.Linear(shape[1], shape[0], bias=False))
        else:
            parent.add_module(last, nn.Module())
            parent.get_submodule(last).register_parameter("weight", nn.Parameter(torch.zeros(shape)))
    return root


@pytest.mark.parametrize("scale", ["tensor", "channel", "group64"])
def test_the_file_is_that_of_save_ternary_inference_checkpoint(scale: str, tmp_path: Path) -> None:
    source = model(scale=scale)
    save(source, tmp_path / "out", to="bittorch")
    path = tmp_path / "out" / "model.safetensors"
    loaded = bittorch.load_ternary_inference_checkpoint(skeleton(), path)
    for name in source.names:
        module = loaded.get_submodule(name.removesuffix(".weight"))
        if source.info(name).ternary:
            assert torch.equal(module.weight_packed, source.packed(name).weight_packed)
            assert torch.equal(module.scale, source.packed(name).scale)
            assert module.activation_bits == 8
        else:
            assert torch.equal(module.weight, source.dense(name))
    bittorch.save_ternary_inference_checkpoint(loaded, path)
    with open_checkpoint(tmp_path / "out") as again:
        assert_same(source, again)


def test_a_tied_embedding_is_one_of_packed_modules(tmp_path: Path) -> None:
    """`bittorch.load_ternary_inference_checkpoint` makes an embedding and its head of it."""
    values = tensors(BITNET)
    values[EMBEDDING] = PackedWeight(pack(random_codes(24, 256)), torch.rand(24), 256)
    save(from_memory(BITNET, values, {}), tmp_path / "out")
    root = skeleton()
    root.get_submodule("model").embed_tokens = nn.Embedding(24, 256, device="meta")
    root.lm_head = nn.Linear(256, 24, False, device="meta")
    loaded = bittorch.load_ternary_inference_checkpoint(root, tmp_path / "out" / "model.safetensors")
    embedding = loaded.get_submodule("model").embed_tokens
    assert torch.equal(embedding.weight_packed, values[EMBEDDING].weight_packed)
    assert torch.equal(embedding.scale, values[EMBEDDING].scale)
    assert loaded.lm_head.weight_packed is embedding.weight_packed


def test_aliases(tmp_path: Path) -> None:
    """A tensor of several names is stored once, packed weights too."""
    save(model(), tmp_path / "out", to="bittorch")
    path = tmp_path / "out" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["bittorch"])
    state, module = load_file(path), "model.layers.{}.mlp.up_proj"
    names = [(f"{module.format(1)}.{part}", f"{module.format(0)}.{part}") for part in ("weight_packed", "scale")]
    header["aliases"] = {
        **dict(names),
        "model.layers.1.mlp.ffn_sub_norm.weight": "model.layers.0.mlp.ffn_sub_norm.weight",
    }
    for name in header["aliases"]:
        del state[name]
    save_file(state, path, metadata={"format": "pt", "bittorch": json.dumps(header)})
    with open_checkpoint(tmp_path / "out") as found:
        one, other = (found.packed(f"{module.format(layer)}.weight") for layer in (0, 1))
        assert torch.equal(one.weight_packed, other.weight_packed)
        assert torch.equal(one.scale, other.scale)
    header["aliases"]["x"] = "y"
    save_file(state, path, metadata={"format": "pt", "bittorch": json.dumps(header)})
    with pytest.raises(FormatError, match="'x' is stored as 'y'"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"layout": "other"}, "layout 'other'"),
        ({"aliases": None}, "no aliases"),
        ({"layers": []}, "no layers"),
        ({"layers": {"model.layers.0.mlp.up_proj": {"kind": "conv2d"}}}, "no linear layer and no embedding"),
        ({"layers": {"model.layers.0.mlp.up_proj": {"in_features": 256, "out_features": "n"}}}, "positive integers"),
        (
            {"layers": {"model.layers.0.mlp.up_proj": {"in_features": 260, "out_features": 512}}},
            r"must be U8 \(512, 65\)",
        ),
        ({"layers": {"nowhere": {}}}, r"lacks nowhere\.scale"),
    ],
)
def test_headers_that_contradict_the_tensors(change: dict, message: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "out", to="bittorch")
    path = tmp_path / "out" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["bittorch"])
    save_file(load_file(path), path, metadata={"bittorch": json.dumps(header | change)})
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "out")


def test_five_trits_a_byte_are_smaller_and_exact(tmp_path: Path) -> None:
    source = model()
    save(source, tmp_path / "two", to="bittorch")
    save(source, tmp_path / "base3", to="bittorch-base3")
    name = "model.layers.0.mlp.down_proj.weight"
    with open_checkpoint(tmp_path / "two") as two, open_checkpoint(tmp_path / "base3") as base3:
        assert_same(two, base3)
        assert two.info(name).bytes == 256 * 512 // 4 + 4
        assert base3.info(name).bytes == 256 * -(-512 // 5) + 4
        assert isinstance(base3.packed(name), PackedWeight)


@pytest.mark.parametrize("to", ["bittorch", "bittorch-base3"])
def test_planes_whose_scales_are_not_powers_of_three_apart(to: str, tmp_path: Path) -> None:
    values, name = tensors(BITNET), "model.layers.0.mlp.up_proj.weight"
    rows, columns = values[name].out_features, values[name].in_features
    packed, scale = pack_trit_planes(torch.randn(rows, columns), 2)
    scale[rows + 3] *= 1.5
    values[name] = PackedWeight(packed, scale, columns, 2)
    message = r"model.safetensors: .*up_proj.*the scale of plane 1 must be 3\^1 times"
    with pytest.raises(FormatError, match=message):  # of what is read back
        save(from_memory(BITNET, values, {}), tmp_path / "out", to=to)
