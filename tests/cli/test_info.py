"""`bittorch info`."""

import math
import re
from pathlib import Path

import pytest

from bittorch.models import LanguageModel
from tests.cli.conftest import Command


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
