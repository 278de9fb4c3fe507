"""`bittorch info`."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from bittorch.models import LanguageModel
from tests.cli.conftest import Command
from tests.models.io.gguf_files import dense_values, write
from tests.models.io.tiny import BITNET


def test_info_json_counts_every_byte(bittorch: Command, model: Path) -> None:
    told = bittorch("info", model, "--json").json
    assert told["format"] == "safetensors"
    header = int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")
    assert told["bytes"] == (model / "model.safetensors").stat().st_size - 8 - header
    assert told["bits_per_weight"] == 32
    assert told["weights"] == sum(math.prod(row["shape"]) for row in told["tensors"])
    assert told["weights"] == sum(p.numel() for p in LanguageModel.from_pretrained(model).parameters())
    assert told["types"] == {
        "F32": {"tensors": 21, "weights": told["weights"], "bytes": told["bytes"], "bits_per_weight": 32}
    }
    assert told["config"]["hidden_size"] == 32


def test_info_prints_a_row_for_each_tensor(bittorch: Command, model: Path) -> None:
    result = bittorch("info", model)
    assert result.code == 0
    assert re.search(r"^model\.layers\.1\.mlp\.down_proj\.weight +F32 +32 x 64 +8192 +32\.000$", result.out, re.M)
    assert (
        len(result.out.splitlines()) == 4 + 22 + 1 + 3
    )  # head, tensors with their title, a line between, sums with theirs
    assert "down_proj" not in bittorch("info", model, "--no-tensors").out
    assert "tensors" not in bittorch("info", model, "--no-tensors", "--json").json


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, b"GGUF"])
def test_info_refuses_what_is_no_checkpoint(bittorch: Command, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(damage)
    result = bittorch("info", tmp_path / "model.gguf")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "model.gguf" in result.err


def test_info_asks_for_the_directory_of_safetensors(bittorch: Command, model: Path) -> None:
    result = bittorch("info", model / "model.safetensors")
    assert result.code == 1
    assert "of safetensors name the directory" in result.err


def test_what_a_file_leaves_open_is_noted_and_can_be_said(bittorch: Command, tmp_path: Path) -> None:  # FIELD L1
    path = tmp_path / "x.gguf"
    write(path, "bitnet", BITNET, "F16", dense_values(BITNET, "F16"))
    result = bittorch("info", path, "--json")
    assert result.code == 0
    assert re.search(r"warning: .*no entry bitnet\.hidden_activation\. relu2 .* give --hidden-act 'silu'", result.err)
    assert result.json["config"]["hidden_act"] == "relu2"
    said = bittorch("info", path, "--json", "--hidden-act", "silu")
    assert (said.err, said.json["config"]["hidden_act"]) == ("", "silu")
    assert bittorch("info", path, "--hidden-act", "gelu").code == 2
    assert bittorch("info", path, "--i2-s-layout", "arm").code == 2
    refused = bittorch("info", path, "--pre-tokenizer", "gpt-2")
    assert refused.code == 1
    assert "--pre-tokenizer 'gpt-2' is for byte-level vocabularies" in refused.err


@pytest.mark.parametrize("command", ["run", "chat", "batch", "bench", "convert"])
def test_options_of_reading_are_there(bittorch: Command, command: str) -> None:
    told = bittorch(command, "--help").out
    assert all(option in told for option in ("--i2-s-layout", "--hidden-act", "--pre-tokenizer"))


def test_layers_that_are_not_ternary_can_be_refused(bittorch: Command, model: Path) -> None:
    result = bittorch("info", model, "--ternary=require")
    assert result.code == 1
    assert re.search(
        r"_proj.weight of shape .* is not exactly ternary: row 0, column \d is .*--ternary 'auto'", result.err
    )


def test_what_is_given_and_chosen_is_listed(bittorch: Command, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "x.gguf"
    write(path, "bitnet", BITNET, "F16", dense_values(BITNET, "F16"))
    told = bittorch("info", path, "--override", "rope_theta=5e4", "--override=eos_token_ids=2,3").out
    assert re.search(r"^given    rope_theta = 50000\.0\ngiven    eos_token_ids = \(2, 3\)\n", told, re.M)
    assert re.search(r"^chosen   gguf-activation: .*give --hidden-act 'silu'", told, re.M)
    assert re.search(
        r"^chosen   gguf-activation-bits: .* are 8-bit.*; --override activation_bits=None leaves", told, re.M
    )
    told = bittorch("info", path, "--override", "activation_bits=none", "--hidden-act", "silu", "--json").json
    assert told["override"] == {"activation_bits": None, "hidden_act": "silu"}
    assert told["choices"] == []
    named = bittorch("info", model, "--tokenizer", model / "tokenizer.json")
    assert f"given    tokenizer {model / 'tokenizer.json'}" in named.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--override", "rope_thetta=1"], "--override has no field 'rope_thetta'; the nearest is rope_theta"),
        (["--override", "rope_theta"], "--override must be key=value, got 'rope_theta'"),
        (["--override", "rope_theta=1", "--override", "rope_theta=2"], "--override of rope_theta stands there twice"),
    ],
)
def test_overrides_that_are_none(bittorch: Command, model: Path, options: list[str], message: str) -> None:
    result = bittorch("info", model, *options)
    assert result.code == 2
    assert message in result.err


def test_what_a_tokenizer_leaves_open_is_listed(bittorch: Command, tmp_path: Path, model: Path) -> None:
    shutil.copytree(model, tmp_path / "x")
    values = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**values, "eos_token_id": None}))
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "x" / name).unlink(missing_ok=True)
    told = bittorch("info", tmp_path / "x").out
    assert re.search(
        r"^chosen   no-end-token: .*x names no token .* --override eos_token_ids=NUMBER names it", told, re.M
    )
