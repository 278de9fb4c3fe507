"""MLX directories against an encoder of its own, which sets bit after bit in Python's integers."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bittorch.models import LanguageModel
from bittorch.models.config import ModelConfig
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import FormatError, convert, open_checkpoint
from bittorch.models.io.hf_config import config_to_hf
from tests.helpers import pack, random_codes, seeded

SIZES = {"vocab_size": 24, "hidden_size": 128, "intermediate_size": 256, "num_layers": 2, "max_positions": 64}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
CONFIG = ModelConfig(**SIZES, **HEADS)
UP, HEAD, EMBEDDING = "model.layers.1.mlp.up_proj", "lm_head", "model.embed_tokens"
State = dict[str, Tensor]


def words(codes: Tensor, bits: int) -> Tensor:
    """uint32 words of each row: code i at bits ``i * bits`` and up of one long integer."""
    rows = []
    for row in codes.tolist():
        whole = sum(int(code) << (i * bits) for i, code in enumerate(row))
        data = whole.to_bytes(len(row) * bits // 8, "little")
        rows.append(struct.unpack(f"<{len(data) // 4}I", data))
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32)


def affine(module: str, codes: Tensor, bits: int, scale: Tensor, bias: Tensor) -> State:
    return {f"{module}.weight": words(codes, bits), f"{module}.scales": scale, f"{module}.biases": bias}


def ternary(module: str, shape: tuple[int, int], group: int, seed: int) -> tuple[State, Tensor]:
    """The tensors of a ternary module, and its weights."""
    codes = random_codes(*shape, seed=seed)
    scale = (torch.rand((shape[0], shape[1] // group), generator=seeded(seed)) + 0.1).bfloat16()
    values = codes * scale.float().repeat_interleave(group, 1)
    return affine(module, codes + 1, 2, scale, -scale), values


def quantised(module: str, shape: tuple[int, int], bits: int, group: int, seed: int) -> tuple[State, Tensor]:
    """The tensors of a module of any codes, and its weights."""
    codes = torch.randint(0, 2**bits, shape, generator=seeded(seed))
    scale = torch.randn((shape[0], shape[1] // group), generator=seeded(seed)).half() / 2**bits
    bias = torch.randn(scale.shape, generator=seeded(seed + 1)).half() / 2
    values = codes * scale.float().repeat_interleave(group, 1) + bias.float().repeat_interleave(group, 1)
    return affine(module, codes, bits, scale, bias), values


def directory(
    path: Path,
    change: Callable[[State, dict[str, Any]], Any] = lambda state, values: None,
    group: int = 64,
    config: ModelConfig = CONFIG,
) -> dict[str, Tensor]:
    """A model as mlx-lm writes it: layers of 2 bits, head and embedding of 4; returns all weights."""
    path.mkdir()
    state: State = {}
    weights: dict[str, Tensor] = {}
    for seed, (name, shape) in enumerate(tensor_shapes(config).items()):
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight"):
            own, weights[name] = ternary(module, shape, group, seed)
            state |= own
        elif module in (HEAD, EMBEDDING):
            own, weights[name] = quantised(module, shape, 4, 32, seed)
            state |= own
        else:
            weights[name] = state[name] = torch.randn(shape, generator=seeded(seed)).bfloat16()
    four = {"bits": 4, "group_size": 32}
    settings: dict[str, Any] = {"bits": 2, "group_size": group, "mode": "affine", HEAD: four, EMBEDDING: four}
    values = {**config_to_hf(config), "quantization": settings, "quantization_config": settings}
    change(state, values)
    save_file(state, path / "model.safetensors", metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(values))
    return weights


@pytest.mark.parametrize("group", [32, 64, 128])
def test_layers_are_packed_and_the_rest_is_floats(group: int, tmp_path: Path) -> None:
    weights = directory(tmp_path / "x", group=group)
    with open_checkpoint(tmp_path / "x", ternary="require") as found:
        assert (found.format, found.config.activation_bits) == ("mlx", None)
        for name, values in weights.items():
            assert found.info(name).ternary == name.endswith("_proj.weight")
            assert torch.equal(found.dense(name).float(), values.float())
        packed = found.packed(f"{UP}.weight")
        seed = list(weights).index(f"{UP}.weight")
        assert torch.equal(packed.weight_packed, pack(random_codes(256, 128, seed=seed)))
        assert packed.scale.shape == ((256,) if group == 128 else (256, 128 // group))
        assert (found.info(f"{UP}.weight").type, found.info(f"{HEAD}.weight").type) == ("MLX 2-bit", "MLX 4-bit")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_number_of_bits(bits: int, tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {}

    def change(state: State, values: dict[str, Any]) -> None:
        own, weights["head"] = quantised(HEAD, (24, 128), bits, 64, bits)
        state.update(own)
        values["quantization"][HEAD] = {"bits": bits, "group_size": 64}

    directory(tmp_path / "x", change)
    with open_checkpoint(tmp_path / "x") as found:
        assert torch.equal(found.dense(f"{HEAD}.weight"), weights["head"])
        assert not found.info(f"{HEAD}.weight").ternary
        assert torch.equal(found.dense(f"{HEAD}.weight", torch.bfloat16), weights["head"].bfloat16())


def test_ternary_heads_rows_of_one_scale_and_older_files(tmp_path: Path) -> None:
    """Older ones have no quantization_config beside quantization, and say nothing of the mode."""
    weights: dict[str, Tensor] = {}

    def change(state: State, values: dict[str, Any]) -> None:
        own, weights["head"] = ternary(HEAD, (24, 128), 64, 3)
        state.update(own)
        codes = random_codes(256, 128, seed=9)
        codes[5] = 0
        codes[:, 64:] *= torch.arange(256)[:, None] % 3 == 0
        scale = torch.full((256, 2), 0.5)
        scale[5] = 7.0  # of zeros, which have no say
        state.update(affine(UP, codes + 1, 2, scale, -scale))
        weights["up"] = codes * 0.5
        values["quantization"] = {"bits": 2, "group_size": 64, EMBEDDING: values["quantization"][EMBEDDING]}
        del values["quantization_config"]

    directory(tmp_path / "x", change)
    with open_checkpoint(tmp_path / "x") as found:
        assert torch.equal(
            found.packed(f"{HEAD}.weight").scale, found.packed(f"{HEAD}.weight").scale.bfloat16().float()
        )
        assert torch.equal(found.dense(f"{HEAD}.weight"), weights["head"])
        assert found.packed(f"{UP}.weight").scale.tolist() == [0.5]
        assert torch.equal(found.dense(f"{UP}.weight"), weights["up"])


@torch.inference_mode()
def test_the_model_computes_what_its_weights_do(tmp_path: Path) -> None:
    weights = directory(tmp_path / "x")
    (tmp_path / "y").mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "y" / "model.safetensors")
    (tmp_path / "y" / "config.json").write_text(json.dumps(config_to_hf(CONFIG)))
    tokens = torch.arange(20)[None] % 24
    dense = LanguageModel.from_pretrained(tmp_path / "y", tokenizer=False, ternary="never")(tokens)
    convert(tmp_path / "x", tmp_path / "own", to="bittorch")
    for name in ("x", "own"):
        found = LanguageModel.from_pretrained(tmp_path / name, tokenizer=False)(tokens)
        assert float((found - dense).norm() / dense.norm()) < 1e-5


@pytest.mark.parametrize("alpha", [False, True], ids=["scales", "row_alpha"])
def test_stacks_of_experts(alpha: bool, tmp_path: Path) -> None:
    """As switch_mlp; Maple's have a row_alpha, and tensors of a head that is not used."""
    experts = {"num_experts": 4, "experts_per_token": 2, "expert_size": 64}
    config = ModelConfig(**SIZES, **HEADS, **experts, architecture="qwen3_moe")

    def change(state: State, values: dict[str, Any]) -> None:
        for layer, part in ((i, p) for i in range(2) for p in ("gate_proj", "up_proj", "down_proj")):
            at = f"model.layers.{layer}.mlp"
            for kind in ("weight", "scales", "biases"):
                parts = [state.pop(f"{at}.experts.{expert}.{part}.{kind}") for expert in range(4)]
                state[f"{at}.switch_mlp.{part}.{kind}"] = torch.stack(parts)
        if alpha:
            for name in [name for name in state if name.endswith("_proj.scales")]:
                state[name.replace("scales", "row_alpha")] = state.pop(name)[..., 0].contiguous()
                del state[name.replace("scales", "biases")]
            state["model.word_embeddings.weight"] = state.pop(f"{EMBEDDING}.weight")
            for kind in ("scales", "biases"):
                state[f"model.word_embeddings.{kind}"] = state.pop(f"{EMBEDDING}.{kind}")
            values["quantization"]["model.word_embeddings"] = values["quantization"].pop(EMBEDDING)
            state["lm_head_flash.token_map"] = torch.zeros(3, dtype=torch.int32)

    weights = directory(tmp_path / "x", change, 64, config)
    with open_checkpoint(tmp_path / "x") as found:
        for name, values in weights.items():
            if alpha and name.endswith("_proj.weight"):  # the scale of a row's first group is that of the row
                values = values.sign() * values[:, :64].abs().amax(1, keepdim=True)
            assert torch.equal(found.dense(name).float(), values.float()), name
            assert found.info(name).ternary == name.endswith("_proj.weight")


def one_more(state: State, values: dict[str, Any]) -> None:
    state[f"{UP}.biases"][100, 1] *= 2


def code_three(state: State, values: dict[str, Any]) -> None:
    codes = random_codes(256, 128, seed=1) + 1
    codes[7, 70] = 3
    state[f"{UP}.weight"] = words(codes, 2)


def of(key: str, value: Any) -> Callable[[State, dict[str, Any]], Any]:
    return lambda state, values: values["quantization"].update({key: value})


def without(*names: str) -> Callable[[State, dict[str, Any]], Any]:
    return lambda state, values: [state.pop(f"{UP}.{name}") for name in names]


def instead(name: str, value: Tensor) -> Callable[[State, dict[str, Any]], Any]:
    return lambda state, values: state.update({f"{UP}.{name}": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_more, r"up_proj.weight is no ternary weight: at row 100, columns 64 to 127, its scale is .* its bias -"),
        (code_three, r"up_proj.weight holds code 11, which is no trit at row 7, column 70"),
        (instead("scales", torch.full((256, 2), float("nan")).bfloat16()), r"up_proj.weight .*(nan|scale)"),
        (without("scales"), r"up_proj.weight needs scales and biases, or a row_alpha; it has biases"),
        (without("scales", "biases"), r"needs scales and biases, or a row_alpha; it has none"),
        (without("weight"), r"has .*up_proj.(scales|biases), but no .*up_proj.weight of uint32"),
        (
            instead("scales", torch.ones(256, 3).bfloat16()),
            r"codes are \(256, 128\), must be floats \(256, 2\) .*got BF16",
        ),
        (instead("biases", torch.ones(256, 2)), r"up_proj has scales of BF16 and biases of F32"),
        (instead("weight", torch.zeros(256, 9).to(torch.uint32)), r"codes are \(256, 144\), must be floats \(256, 2\)"),
        (
            instead("weight", torch.zeros(256).to(torch.uint32)),
            r"of shape \(256,\) is not cut into rows of 2-bit codes",
        ),
        (of("bits", 7), r"of model.layers.* in config.json has bits 7; known are 2, 3, 4, 5, 6, 8"),
        (of("bits", "2"), r"has bits '2'"),
        (of("group_size", 0), r"has group_size 0; it must be a multiple of 4 columns"),
        (of("group_size", 2**40), r"has group_size 1099511627776"),
        (of("mode", "mxfp4"), r"has mode 'mxfp4'; affine is read"),
        (
            of(UP, {"bits": 4, "group_size": 64}),
            r"up_proj.weight, whose codes are \(256, 64\), must be floats \(256, 1\)",
        ),
        (instead("row_alpha", torch.ones(256)), r"it has scales, biases, row_alpha"),
    ],
)
def test_what_is_damaged_or_not_ternary(change: Any, message: str, tmp_path: Path) -> None:
    directory(tmp_path / "x", change)
    with pytest.raises(FormatError, match=message), open_checkpoint(tmp_path / "x") as found:
        found.packed(f"{UP}.weight")


def test_rotated_weights_are_refused(tmp_path: Path) -> None:
    directory(tmp_path / "x")
    (tmp_path / "x" / "hadamard.json").write_text("{}")
    with pytest.raises(FormatError, match=r"hadamard.json says that weights stand in a rotated basis"):
        open_checkpoint(tmp_path / "x")
