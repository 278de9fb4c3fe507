"""What of the plugin needs no vLLM: how it is found and what it says without one, and what it reads of folders."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import bittorch.vllm
from bittorch.models import LanguageModel
from bittorch.vllm.layers import PackedForm, check_split, joined, read_layers

pytest.importorskip("transformers")

from tests.hf import tiny

ROOT = Path(__file__).parents[2]
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.llama(), tmp_path_factory.mktemp("dense"))


@pytest.fixture
def folder(dense: Path, tmp_path: Path) -> Path:
    model = LanguageModel.from_pretrained(dense, depth=2, group_size=32, activation_bits=8, tokenizer=False)
    model.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def test_the_entry_point_leads_to_a_module_that_imports_without_vllm() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points."vllm.general_plugins"]\nbittorch = "bittorch.vllm:register"\n' in text
    code = (
        "import sys; sys.modules['vllm'] = None; import bittorch.vllm, bittorch.vllm.layers; bittorch.vllm.register()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "ImportError: bittorch.vllm needs vLLM>=0.32" in done.stderr


def _stand_in(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    module = types.ModuleType("vllm")
    module.__version__ = number  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.parametrize(
    ("number", "why"), [("0.12.1", "it is older"), ("0.99.0", "cannot import name 'ModelRegistry'")]
)
def test_a_vllm_that_does_not_fit_is_named_and_still_starts(
    monkeypatch: pytest.MonkeyPatch, number: str, why: str
) -> None:
    _stand_in(monkeypatch, number)
    with pytest.warns(UserWarning, match=rf"made for vLLM 0.32 and does not fit vLLM {number} \({why}"):
        bittorch.vllm.register()


def test_versions_between_releases_are_not_compared() -> None:
    version = bittorch.vllm.version
    assert version("0.32.0+cpu") == (0, 32)
    assert version("0.33.1rc2") == (0, 33)
    assert version("0.1.dev1+g0123") is None
    assert version("0.33.1.dev4+gabc") is None


def test_forms_are_those_of_the_header(folder: Path) -> None:
    forms = read_layers(folder)
    assert len(forms) == 2 * 7
    assert forms[Q] == PackedForm(64, 64, 2, 2, 8)
    assert forms[DOWN] == PackedForm(128, 64, 4, 2, 8)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    assert joined(names, forms) == PackedForm(64, 64 + 32 + 32, 2, 2, 8)
    assert joined(["lm_head"], forms) is None


def test_layers_that_cannot_be_one_matrix_are_named() -> None:
    form = PackedForm(64, 32, 0, 1, None)
    assert joined("ab", {"a": form, "b": form._replace(groups=1)}) == PackedForm(64, 64, 1, 1, None)
    with pytest.raises(ValueError, match="a, b as one matrix, but b is not packed"):
        joined("ab", {"a": form})
    with pytest.raises(ValueError, match=r"a has \(64, 1, 1, None\), b has \(64, 4, 1, None\)"):
        joined("ab", {"a": form, "b": form._replace(groups=4)})


def test_cuts_through_bytes_and_groups_are_named() -> None:
    check_split("o", PackedForm(256, 8, 2, 1, 8), 128)
    check_split("o", PackedForm(10, 8, 1, 1, 8), 10)
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size=4 leaves o 64 of 256 columns .* multiple of 128, its group"
    ):
        check_split("o", PackedForm(256, 8, 2, 1, 8), 64)
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2 leaves o 6 of 12 columns .* multiple of 4: take"):
        check_split("o", PackedForm(12, 8, 1, 1, None), 6)


def _without(path: Path, name: str) -> None:
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    del tensors[name]
    save_file(tensors, path, metadata)


def test_what_vllm_cannot_run_is_refused_before_it_starts(folder: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"someone/model is no folder .* hf download"):
        read_layers(Path("someone/model"))
    config = folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"bittorch": {"hadamard": {"block_size": 32}}}))
    with pytest.raises(ValueError, match="'hadamard' under 'bittorch', which vLLM does not compute"):
        read_layers(folder)
    config.write_text(json.dumps(values))
    _without(folder / "model.safetensors", f"{Q}.scale")
    with pytest.raises(ValueError, match=rf"lacks {Q}.scale"):
        read_layers(folder)
    model = LanguageModel.from_pretrained(dense, depth=1, head_depth=1, tokenizer=False, dtype=torch.float32)
    model.save_pretrained(tmp_path / "head")
    with pytest.raises(
        ValueError, match=r"lm_head.weight is packed, and vLLM runs the embedding or the head from floats"
    ):
        read_layers(tmp_path / "head")
    model.save_pretrained(tmp_path / "base3", to="bittorch-base3")
    with pytest.raises(ValueError, match="is in base3, which vLLM cannot run; bittorch's own engine runs it"):
        read_layers(tmp_path / "base3")
