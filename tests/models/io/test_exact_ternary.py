"""Floats that are exactly trits times scales are ternary weights, and nothing else is."""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bittorch.models import LanguageModel
from bittorch.models.config import EMBEDDING, HEAD
from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import CheckpointWarning, FormatError, convert, from_memory, open_checkpoint, save
from bittorch.models.io.checkpoint import StoredTensor, TensorInfo
from bittorch.models.io.exact_ternary import recognised
from bittorch.models.io.hf_config import config_to_hf
from tests import helpers
from tests.helpers import random_codes, seeded
from tests.models.io import gguf_files
from tests.models.io.tiny import LLAMA, model, random_scale, tensors

UP, ROUTER = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate.weight"
KINDS = ("tensor", "channel", "group256", "group128", "group64", "columns64")


def scale_of(kind: str, n: int, k: int, seed: int) -> Tensor:
    """As `random_scale`, of other groups too, and of blocks of columns; multipliers that bfloat16 holds."""
    if kind == "group32":
        scale = torch.cat([random_scale("group64", n, k, seed + part) for part in (0, 1)], 1)
    else:
        scale = random_scale("group64" if kind in ("group128", "columns64") else kind, n, k, seed)
    scale = scale[:, ::2] if kind == "group128" else scale[:1].expand(n, -1) if kind == "columns64" else scale
    return scale.bfloat16().float()


def codes_of(name: str) -> Tensor:
    n, k = tensor_shapes(LLAMA)[name]
    return random_codes(n, k, seed=len(name) + n)


@functools.cache
def packed_of(name: str) -> Tensor:
    return helpers.pack(codes_of(name))


def spread(scale: Tensor, n: int, k: int) -> Tensor:
    """A multiplier for each weight."""
    columns = scale.reshape(-1, 1) if scale.dim() == 1 else scale
    return columns.repeat_interleave(k // columns.shape[1], 1).expand(n, k)


def write(path: Path, kind: str, dtype: torch.dtype, change: Callable[[dict[str, Tensor]], Any] = lambda state: None):
    """A dense directory whose projections are trits times scales; returns the scales."""
    path.mkdir()
    state, scales = {}, {}
    for number, (name, (n, *k)) in enumerate(tensor_shapes(LLAMA).items()):
        state[name] = torch.randn((n, *k), generator=seeded(number)).to(dtype)
        if name.endswith("_proj.weight"):
            scales[name] = scale_of(kind, n, k[0], number)
            state[name] = (codes_of(name) * spread(scales[name], n, k[0])).to(dtype)
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config_to_hf(LLAMA)))
    return scales


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.bfloat16) for kind in KINDS), ("group128", torch.float16), ("channel", torch.float32)],
    ids=str,
)
def test_trits_and_scales_are_found(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:  # FIELD L5
    scales = write(tmp_path / "x", kind, dtype)
    with pytest.warns(CheckpointWarning, match="14 weights are stored as .*F") as caught:
        found = open_checkpoint(tmp_path / "x")
    assert len(caught) == 1
    for name, scale in scales.items():
        info, weight = found.info(name), found.packed(name)
        assert info.ternary
        assert info.type.endswith(" (ternary)")
        assert torch.equal(weight.weight_packed, packed_of(name))
        n, k = info.shape
        assert torch.equal(spread(weight.scale, n, k), spread(scale, n, k))
        assert weight.scale.numel() <= scale.numel()  # as coarse as it is
        assert found.dense(name).dtype == dtype
    assert not found.info(HEAD).ternary
    assert not found.info("model.embed_tokens.weight").ternary


class Held(StoredTensor):
    """A tensor in memory."""

    def __init__(self, name: str, values: Tensor) -> None:
        super().__init__(TensorInfo(name, "F32", tuple(values.shape), 0))
        self.values = values

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.values


def test_layers_of_a_delta_net_count_too() -> None:
    """Its gates may be floats where layers must be ternary."""
    at = "model.layers.0.linear_attn"
    trits, floats = random_codes(8, 64).float(), torch.randn(8, 64, generator=seeded(1))
    parts = {f"{at}.{name}.weight": trits for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "out_proj")}
    held = {name: Held(name, values) for name, values in {**parts, f"{at}.in_proj_a.weight": floats}.items()}
    with pytest.warns(CheckpointWarning, match=r"4 weights .* 1 others are not"):
        found = recognised(held, "x", "require")
    assert [name for name, own in found.items() if not own.info.ternary] == [f"{at}.in_proj_a.weight"]
    held[f"{at}.in_proj_z.weight"] = Held(f"{at}.in_proj_z.weight", floats)
    with pytest.raises(FormatError, match=r"x: .*in_proj_z.weight .* is not exactly ternary: row 0, column [0123] is"):
        recognised(held, "x", "require")


def test_heads_embeddings_and_ragged_rows_count_too() -> None:
    """Rows that 64 does not divide may have a scale each."""
    scale = torch.rand(7, 1, generator=seeded(1)) + 0.1
    values = random_codes(7, 70) * scale
    stored = Held(HEAD, values)
    with pytest.warns(CheckpointWarning):
        found = recognised(dict.fromkeys((HEAD, EMBEDDING, ROUTER), stored), "x")
    assert not found[ROUTER].info.ternary
    for name in (HEAD, EMBEDDING):
        weight = found[name].packed()
        assert torch.equal(weight.scale, scale[:, 0])
        assert torch.equal(weight.weight_packed, helpers.pack(random_codes(7, 70)))


def one_more(state: dict[str, Tensor]) -> None:
    state[UP][100, 7] = 0.3  # no row that is looked at first


@pytest.mark.parametrize(
    "change",
    [
        one_more,
        lambda state: state[UP][100].fill_(float("nan")),
        lambda state: state[UP][:, 5].fill_(float("inf")),
        lambda state: state[UP].zero_(),
        lambda state: state[UP].normal_(),
        lambda state: state[UP][100, 3].mul_(1 + 2**-7),  # one unit in the last place
    ],
    ids=["another value", "NaN", "Inf", "zeros", "dense", "one ulp"],
)
def test_what_is_not_exact_stays_dense(change: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    def changed(state: dict[str, Tensor]) -> None:
        state[UP] = torch.where(state[UP] == 0, state[UP].abs().max(), state[UP])  # else what is changed may be 0
        change(state)

    write(tmp_path / "x", "tensor", torch.bfloat16, changed)
    with pytest.warns(CheckpointWarning, match="13 weights"), open_checkpoint(tmp_path / "x") as found:
        assert not found.info(UP).ternary


def test_dense_models_are_not_told_of_and_hardly_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bittorch.models.io import exact_ternary

    def dense(state: dict[str, Tensor]) -> None:
        for value in state.values():
            value.normal_(generator=seeded(1))

    write(tmp_path / "x", "tensor", torch.bfloat16, dense)
    looked, look = [], exact_ternary._of_one_magnitude
    monkeypatch.setattr(
        exact_ternary, "_of_one_magnitude", lambda w, group: (looked.append(w.numel()), look(w, group))[1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        open_checkpoint(tmp_path / "x").close()
    assert max(looked) <= 512  # one row
    assert len(looked) == 16  # of each linear weight and of the embedding


@pytest.mark.filterwarnings("ignore::bittorch.models.io.CheckpointWarning")
@pytest.mark.parametrize(
    ("kind", "to"), [("group64", "gguf-q2_0"), ("group256", "gguf-tq2_0"), ("tensor", "gguf-i2_s")]
)
def test_conversion_writes_them_ternary(kind: str, to: str, tmp_path: Path) -> None:  # FIELD L5
    write(tmp_path / "x", kind, torch.bfloat16)
    report = convert(tmp_path / "x", tmp_path / "y", to=to)
    assert (report.ternary, report.scale_error) == (14, 0)
    with open_checkpoint(tmp_path / "x") as before, open_checkpoint(tmp_path / "y") as after:
        assert after.info(UP).type == to.partition("-")[2].upper()
        assert torch.equal(before.dense(UP).float(), after.dense(UP))


@pytest.mark.filterwarnings("ignore::bittorch.models.io.CheckpointWarning")
@torch.inference_mode()
def test_the_model_computes_what_the_dense_one_does(tmp_path: Path) -> None:
    # FIELD L5
    write(tmp_path / "x", "group64", torch.float32, lambda state: state["model.embed_tokens.weight"].mul_(0.1))
    tokens = torch.arange(20)[None] % 24
    packed = LanguageModel.from_pretrained(tmp_path / "x", tokenizer=False)
    dense = LanguageModel.from_pretrained(tmp_path / "x", tokenizer=False, ternary="never")
    assert type(packed.layers[0].mlp.down_proj) is not type(dense.layers[0].mlp.down_proj)
    assert helpers.relative_l2(packed(tokens), dense(tokens)) < 1e-4
    assert isinstance(open_checkpoint(tmp_path / "x").dense(UP), Tensor)


@pytest.mark.filterwarnings("ignore::bittorch.models.io.CheckpointWarning")
@pytest.mark.parametrize("kind", ["channel", "group64"])
def test_floats_of_a_gguf_file_count_too(kind: str, tmp_path: Path) -> None:  # FIELD L5
    """With the rows of q and k in their order."""
    scales = write(tmp_path / "x", kind, torch.bfloat16)
    convert(tmp_path / "x", tmp_path / "x.gguf", to="gguf-tq2_0", allow_dense=True, ternary="never")
    with pytest.warns(CheckpointWarning, match="14 weights are stored as BF16"):
        found = open_checkpoint(tmp_path / "x.gguf")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight", UP):
        weight, (n, k) = found.packed(name), found.info(name).shape
        assert torch.equal(weight.weight_packed, packed_of(name))
        assert torch.equal(spread(weight.scale, n, k), spread(scales[name], n, k))
    assert convert(tmp_path / "x.gguf", tmp_path / "y", to="bittorch").ternary == 14


def test_zeros_of_any_sign_in_rows_and_groups(tmp_path: Path) -> None:
    """They have no say in the scale, which stays one for the tensor."""

    def change(state: dict[str, Tensor]) -> None:
        state[UP] = codes_of(UP).to(torch.bfloat16) * 0.25
        state[UP][3] = -0.0
        state[UP][:, 64:128] = 0.0
        state[UP][7, ::2] *= -0.0

    write(tmp_path / "x", "tensor", torch.bfloat16, change)
    with pytest.warns(CheckpointWarning, match="14 weights"), open_checkpoint(tmp_path / "x") as found:
        weight, floats = found.packed(UP), found.dense(UP).float()
    assert weight.scale.tolist() == [0.25]
    assert torch.equal(weight.weight_packed, helpers.pack((floats * 4).to(torch.int8)))


def test_never_reads_floats(tmp_path: Path) -> None:
    write(tmp_path / "x", "group64", torch.bfloat16)
    with warnings.catch_warnings(), open_checkpoint(tmp_path / "x", ternary="never") as found:
        warnings.simplefilter("error", CheckpointWarning)
        assert not any(found.info(name).ternary for name in found.names)
    with pytest.raises(ValueError, match="ternary must be one of auto, never, require, got 'always'"):
        open_checkpoint(tmp_path / "x", ternary="always")


def test_narrow_groups_are_packed_where_that_is_required(tmp_path: Path) -> None:
    scales = write(tmp_path / "x", "group32", torch.bfloat16)
    with pytest.warns(CheckpointWarning, match="14 weights .* of 32") as caught:
        found = open_checkpoint(tmp_path / "x")
    assert [warning.message.choice for warning in caught] == ["exact-ternary-narrow"]
    assert not found.info(UP).ternary
    with pytest.warns(CheckpointWarning, match="14 weights .* read packed"):
        found = open_checkpoint(tmp_path / "x", ternary="require")
    assert torch.equal(found.packed(UP).scale, scales[UP])
    assert torch.equal(found.packed(UP).weight_packed, packed_of(UP))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (one_more, r"row 100, column 7 is 0.30078125 beside 0.5 at column [456]\."),
        (
            lambda state: state[UP][100, 6].fill_(float("-inf")),
            r"row 100, column [457] is .* beside -inf at column 6\.",
        ),
        (lambda state: state[UP][511, 6].fill_(float("nan")), r"row 511, column [457] is .* beside nan at column 6\."),
    ],
    ids=["another value", "Inf", "NaN"],
)
def test_what_is_required_and_is_not_ternary_is_named(
    change: Callable[[dict[str, Tensor]], Any], why: str, tmp_path: Path
) -> None:
    def changed(state: dict[str, Tensor]) -> None:
        state[UP] = codes_of(UP).abs().clamp(min=1).to(torch.bfloat16) * 0.5
        change(state)

    write(tmp_path / "x", "tensor", torch.bfloat16, changed)
    with pytest.raises(FormatError, match=rf"x: {UP} of shape \(512, 256\) is not exactly ternary: {why}"):
        open_checkpoint(tmp_path / "x", ternary="require")


def test_what_is_required_holds_for_every_format(tmp_path: Path) -> None:
    """Floats beside ternary weights of a quantised format, and types that are not floats."""
    save(model(LLAMA), tmp_path / "own")
    open_checkpoint(tmp_path / "own", ternary="require").close()
    state = tensors(LLAMA) | {UP: torch.randn(512, 256)}
    save(from_memory(LLAMA, state, {}), tmp_path / "part")
    with pytest.raises(FormatError, match=rf"part: {UP} .* row 0, column 0 is "):
        open_checkpoint(tmp_path / "part", ternary="require")
    gguf_files.write(tmp_path / "x.gguf", "llama", LLAMA, "Q8_0", gguf_files.dense_values(LLAMA, "Q8_0"))
    with pytest.raises(FormatError, match=r"q_proj.weight .* is not exactly ternary: its type is Q8_0"):
        open_checkpoint(tmp_path / "x.gguf", ternary="require")
