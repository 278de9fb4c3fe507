"""What each entry of a GGUF file does: read, ignored as it changes nothing, or refused."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from bittorch.models.config import ModelConfig
from bittorch.models.io import CheckpointWarning, FormatError, gguf_entries, open_checkpoint, save
from bittorch.models.io.gguf import open_gguf
from bittorch.models.io.gguf_entries import HARMLESS, NEUTRAL, READ, READ_ELSEWHERE, TOKENIZER_READ
from bittorch.models.io.gguf_names import config_entries
from bittorch.models.io.gguf_split import read_parts
from bittorch.models.rope import rope_frequencies
from tests.models.io.gguf_files import dense_values, write
from tests.models.io.tiny import BITNET, LLAMA, model


def opened(path: Path, extra: dict[str, Any] | None = None, without: tuple[str, ...] = ()) -> ModelConfig:
    write(path / "x.gguf", "llama", LLAMA, "F16", dense_values(LLAMA, "F16"), extra, without=without)
    with open_checkpoint(path / "x.gguf") as found:
        return found.config


# FIELD L7
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prism.hadamard.rank", 64),
        ("prism.transform", "hadamard"),
        ("fork.rotated", True),
        ("llama.logit_scale", 0.5),
        ("llama.attention.scale", 0.25),
        ("llama.attention.sliding_window", 64),
        ("llama.expert_count", 8),
        ("llama.use_parallel_residual", True),
        ("llama.attention.causal", False),
        ("llama.rope.scaling.attn_factor", 1.2),
        ("llama.unheard_of", 3),
        ("bittorch.unheard_of", 3),
        ("general.type", "adapter"),
    ],
)
def test_entries_that_may_change_the_model_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"x\.gguf has entries that are not supported .*: '{key}' = ") as caught:
        opened(tmp_path, {key: value})
    assert caught.value.choice == "gguf-entry"
    assert "gguf-new-metadata" in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"general.type": "model", "general.quantized_by": "somebody", "general.sampling.temp": 0.5},
        {"quantize.imatrix.file": "x.dat", "quantize.imatrix.entries_count": 12},
        {"mradermacher.quantize_version": 2},
        {f"llama.{key}": values[-1] for key, values in NEUTRAL.items()},
        {f"llama.{key}": 1 for key in HARMLESS},
        {"llama.attention.sliding_window": 128},
        {"llama.attention.sliding_window": 0},
    ],
)
def test_entries_that_change_nothing(entries: dict[str, Any], tmp_path: Path) -> None:
    assert opened(tmp_path, entries) == opened(tmp_path)


class Recorded(Mapping[str, Any]):
    """A dictionary that notes which keys are asked for one by one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.asked = dict(values), set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


@pytest.mark.filterwarnings("ignore::bittorch.models.io.CheckpointWarning")
@pytest.mark.parametrize(("arch", "config"), [("llama", LLAMA), ("bitnet", BITNET)])
def test_the_tables_have_what_the_reader_asks_for(
    arch: str, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that `config_from_gguf` reads without a line in the tables fails, and so does a line for no key."""
    monkeypatch.setattr(gguf_entries, "_is_known", lambda *_: True)  # it asks for keys too
    asked: set[str] = set()
    for scaling in ({}, {f"{arch}.rope.scaling.type": "yarn", f"{arch}.rope.scaling.factor": 2.0}):
        write(tmp_path / "x.gguf", arch, config, "F16", dense_values(config, "F16"), scaling)
        files, entries, table = read_parts(tmp_path / "x.gguf")
        recorded = Recorded(entries)
        with monkeypatch.context() as patch:
            patch.setattr("bittorch.models.io.gguf.read_parts", lambda _, r=(files, recorded, table): r)
            open_gguf(tmp_path / "x.gguf").close()
        asked |= recorded.asked
    own = {key for key in asked if key.startswith(f"{arch}.")}
    others = asked - own - TOKENIZER_READ
    silent = {"hidden_activation"} if arch == "llama" else set()  # llama has no other activation
    assert {key.removeprefix(f"{arch}.") for key in own} | silent == READ
    assert others <= READ_ELSEWHERE


def test_the_tables_have_what_the_tokenizer_asks_for() -> None:
    pytest.importorskip("tokenizers")
    from bittorch.models.tokenizer_files import from_gguf

    vocabulary = {
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b"],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
        "tokenizer.ggml.scores": [0.0] * 5,
        "tokenizer.ggml.merges": [],
        **{f"tokenizer.ggml.{kind}_token_id": 2 for kind in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")},
    }
    asked = set[str]()
    for kind in ("llama", "gpt2"):
        recorded = Recorded({**vocabulary, "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": "gpt-2"})
        from_gguf(recorded)
        asked |= recorded.asked
    assert asked == TOKENIZER_READ


def test_entries_of_the_writer_are_in_the_tables(tmp_path: Path) -> None:
    for config, arch in ((LLAMA, "llama"), (BITNET, "bitnet")):
        keys = {key.removeprefix(f"{arch}.") for key in config_entries(config, arch) if key.startswith(f"{arch}.")}
        assert keys <= READ | HARMLESS


# FIELD L8
@pytest.mark.parametrize(
    ("entries", "factor"),
    [
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 4.0}, 2.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, 1.0),
        ({"llama.rope.scaling.type": "linear"}, 1.0),
        ({"llama.rope.scaling.factor": 0.0}, 1.0),
        ({}, 1.0),
    ],
)
def test_linear_positions_as_in_llama_cpp(entries: dict[str, Any], factor: float, tmp_path: Path) -> None:
    found = rope_frequencies(opened(tmp_path, entries))
    pairs = torch.arange(0, 64, 2, dtype=torch.float64)
    assert torch.allclose(found.double(), 500000.0 ** (-pairs / 64) / factor, rtol=1e-6)


def test_factors_of_frequencies_and_of_positions_multiply(tmp_path: Path) -> None:  # FIELD L8
    """llama.cpp divides the angle by both."""
    scaling = {"rope_type": "factors", "factors": tuple(1.0 + i for i in range(32))}
    save(model(dataclasses.replace(LLAMA, rope_scaling=scaling)), tmp_path / "x.gguf", to="gguf-tq2_0")
    reader, path = gguf.GGUFReader(tmp_path / "x.gguf"), tmp_path / "y.gguf"
    values = dense_values(LLAMA, "F16")
    factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    raw = {"rope_freqs.weight": (0, factors.data.copy())}
    write(path, "llama", LLAMA, "F16", values, {"llama.rope.scaling.factor": 2.0}, raw=raw)
    with open_checkpoint(path) as found:
        assert found.config.rope_scaling == {"rope_type": "factors", "factors": tuple(2.0 + 2 * i for i in range(32))}
    write(path, "llama", LLAMA, "F16", values, {"llama.rope.scaling.type": "yarn"}, raw=raw)
    with pytest.raises(FormatError, match=r"by yarn and by rope_freqs\.weight"):
        open_checkpoint(path)


# FIELD L14
def test_equal_values_for_all_layers_are_one(tmp_path: Path) -> None:
    per_layer = {"attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 512}
    assert opened(tmp_path, {f"llama.{key}": [value] * 2 for key, value in per_layer.items()}) == opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([2, 4], "attention.head_count_kv is 2 in layer 0 and 4 in layer 1; layers that differ are not supported"),
        ([2, 2, 2], "attention.head_count_kv has 3 values for 2 layers"),
    ],
)
def test_values_that_differ_between_layers(values: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"x.gguf: llama.{message}"):
        opened(tmp_path, {"llama.attention.head_count_kv": values})


def test_heads_with_values_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="keys of 64 and values of 32 channels"):
        opened(tmp_path, {"llama.attention.value_length": 32})


def test_files_of_the_writers_leave_nothing_open(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for config in (BITNET, LLAMA):
        for to in ("gguf-tq2_0", "gguf-tq1_0", "gguf-q2_0", "gguf-i2_s", "bittorch"):
            save(model(dataclasses.replace(config, activation_bits=8)), tmp_path / "x", to=to, overwrite=True)
            open_checkpoint(tmp_path / "x").close()
            (tmp_path / "x").rename(tmp_path / f"{to}-{config.architecture}")
    assert not [warning for warning in recwarn if isinstance(warning.message, CheckpointWarning)]
