"""GGUF files of PrismML, whose weights are rotated: logits of the model before, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bittorch.models import LanguageModel, ModelConfig
from bittorch.models.config import HEAD
from bittorch.models.hadamard import Hadamard
from bittorch.models.io import FormatError, open_checkpoint
from bittorch.models.io.gguf_names import gguf_name
from tests.models.io.gguf_files import dense_values, hadamard_entries, write
from tests.models.io.tiny import LLAMA
from tests.models.test_hadamard import every, folded, matrix

IDS = torch.arange(12).view(1, -1)
TIED = dataclasses.replace(LLAMA, tie_embeddings=True)


def entries(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """Of a model all of whose weights are rotated in blocks of 128; None leaves one out."""
    basis, tied = every(config, size=128), config.tie_embeddings
    names = [gguf_name(name) for name in basis.weights if not (tied and name == HEAD)]
    return hadamard_entries(basis, names, **{**({"version": 2, "tied_output": True} if tied else {}), **changes})


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["own head", "tied"])
@pytest.mark.parametrize("kind", ["F32", "PQ2_0"])
def test_logits_of_a_rotated_file_are_those_before(config: ModelConfig, kind: str, tmp_path: Path) -> None:
    """Ternary weights are so in the basis; the file without rotation has what they are out of it."""
    basis = every(config, size=128)
    if kind == "F32":
        plain = dense_values(config, "F32")
        plain = {name: value / value.shape[-1] ** 0.5 if value.ndim == 2 else value for name, value in plain.items()}
        turned = {n: v.numpy() for n, v in folded({n: torch.tensor(v) for n, v in plain.items()}, basis).items()}
    else:
        turned = dense_values(config, "TQ2_0")
        plain = unfolded(turned, basis)
    write(tmp_path / "plain.gguf", "llama", config, "F32", plain)
    write(tmp_path / "x.gguf", "llama", config, kind, turned, entries(config))
    expected = LanguageModel.from_pretrained(tmp_path / "plain.gguf", tokenizer=False)(IDS)
    with open_checkpoint(tmp_path / "x.gguf") as source:
        assert source.info("model.layers.0.mlp.up_proj.weight").ternary == (kind != "F32")
    found = LanguageModel.from_pretrained(tmp_path / "x.gguf", tokenizer=False)(IDS)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max().clamp(min=1))


def unfolded(turned: dict[str, np.ndarray], basis: Hadamard) -> dict[str, np.ndarray]:
    """The inverse of `folded` for a model all of whose matrices are rotated."""
    out = {}
    for name, value in turned.items():
        if value.ndim == 2:
            value = (torch.tensor(value).double() @ matrix(basis, value.shape[1])).float().numpy()
        out[name] = value
    return out


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"version": None}, r"version None, which must be 1, as tied_output is false"),
    ({"version": 3}, r"version 3, which must be 1"),
    ({"version": 2}, r"version 2, which must be 1, as tied_output is false"),
    ({"transform": "haar"}, r"transform 'haar', which must be 'normalized-sylvester-walsh-hadamard'"),
    ({"axis": "rows"}, r"axis 'rows', which must be 'input-last-dimension'"),
    ({"sign_mode": "seeded"}, r"sign_mode 'seeded', which must be 'identity' or 'explicit'"),
    ({"sign_mode": "identity"}, r"sign_widths .*, which must be absent for sign_mode 'identity'"),
    ({"block_size": 96}, r"block_size must be a power of two up to 32768, got 96"),
    ({"block_size": None}, r"block_size must be a power of two"),
    ({"block_size": 512, "sign_widths": [512], "sign_values": [1] * 512}, r"block_size=512 does not divide the 256"),
    ({"sign_widths": [256]}, r"sign_values .*, which must be 256 numbers for sign_widths \[256\], got 768"),
    ({"sign_widths": [256, 256], "sign_values": [1] * 512}, r"sign_widths \[256, 256\], which must be different"),
    ({"sign_widths": [64], "sign_values": [1] * 64}, r"signs of width 64 are not cut into blocks of block_size=128"),
    ({"sign_widths": [256], "sign_values": [1] * 256}, r"signs are of widths 256, and .* has 512 columns"),
    ({"sign_values": [2] + [1] * 767}, r"sign 0 of width \d+ must be 1 or -1, got 2"),
    (
        {"weight_names": ["blk.7.attn_q.weight"]},
        r"names of weights .*; 'blk\.7\.attn_q\.weight' is none",
    ),
    ({"weight_names": ["token_embd.weight"]}, r"names of weights that the file has; 'token_embd\.weight' is none"),
    ({"weight_names": ["output_norm.weight"]}, r"hadamard weights name 'model\.norm\.weight'"),
    ({"weight_names": [1]}, r"weight_names \[1\], which must be names of tensors"),
    ({"inverse_weight_names": ["output.weight"]}, r"must be empty or 'token_embd\.weight'"),
    ({"tied_output": True, "version": 2}, r"tied_output True, which must be false where output\.weight is stored"),
    ({"tied_output": 1}, r"tied_output 1, which must be true or false"),
    ({"gdn_v_grouped": True}, r"gdn_v_grouped True, which must be .* false for a model without DeltaNet layers"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS, ids=[f"{i}" for i in range(len(FAULTS))])
def test_other_entries_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), entries(LLAMA, **changes))
    with pytest.raises(FormatError, match=rf"x\.gguf.*{message}"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1, "tied_output": None}, r"tied_output None, which must be true where token_embd\.weight is in"),
        ({"inverse_weight_names": []}, r"tied_output True, which must be false where .*lacks token_embd\.weight"),
    ],
)
def test_a_tied_head_is_version_2(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama", TIED, "F16", dense_values(TIED, "F16"), entries(TIED, **changes))
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x.gguf")
