"""Fields that a caller gives count in the place of what a file says, and nothing else changes."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from bittorch.models import LanguageModel, ModelConfig, Tokenizer
from bittorch.models.config import HEAD
from bittorch.models.io import FormatError, convert, from_memory, open_checkpoint, save
from bittorch.models.io.override import checked, parsed
from tests.models.io import gguf_files
from tests.models.io.tiny import BITNET, LLAMA, model, tensors
from tests.models.tiny import changed
from tests.models.tiny import model as random_model
from tests.models.vocabularies import byte_tokenizer

GIVEN = {
    "rope_theta": 1e6,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "hidden_act": "relu2",
    "activation_bits": 16,
    "eos_token_ids": (5, 6),
    "bos_token_id": None,
    "rms_norm_eps": 1e-3,
    "max_positions": 99,
    "fuse_norms": False,
}


def directory(path: Path, **changes: Any) -> Path:
    """LLAMA as transformers has it; entries of config.json that are None are left out."""
    save(model(LLAMA), path, to="compressed-tensors")
    values = json.loads((path / "config.json").read_text()) | changes
    del values["bittorch"]
    values = {key: value for key, value in values.items() if value is not None or key == "rms_norm_eps"}
    (path / "config.json").write_text(json.dumps(values))
    (path / "generation_config.json").write_text('{"eos_token_id": 7}')
    return path


def gguf_file(path: Path, entries: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
    values = gguf_files.dense_values(LLAMA, "TQ2_0")
    gguf_files.write(path, "llama", LLAMA, "TQ2_0", values, entries, without=without)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rope_theta=1e6", 1e6),
        ("rope_theta=10000", 10000.0),
        ("max_positions=4096", 4096),
        ("hidden_act=relu2", "relu2"),
        ("activation_bits=none", None),
        ("tie_embeddings=True", True),
        ("eos_token_ids=5", (5,)),
        ("eos_token_ids=5,6", (5, 6)),
        ("eos_token_ids=[]", ()),
        ("biases=q_proj, k_proj", ("q_proj", "k_proj")),
        ('rope_scaling={"rope_type": "linear", "factor": 2}', {"rope_type": "linear", "factor": 2}),
    ],
)
def test_texts_become_values_of_the_field(text: str, value: Any) -> None:
    key, found = parsed(text)
    assert (key, found, type(found)) == (text.partition("=")[0], value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope_theta", "must be key=value, got 'rope_theta'"),
        ("eos_token_id=5", "no field 'eos_token_id'; the nearest is eos_token_ids. Fields: vocab_size, "),
        ("max_position_embeddings=5", "the nearest is max_positions"),
        ("zzz=5", r"no field 'zzz'\. Fields"),
        ("architecture=llama", "architecture is not possible: the names"),
        ("num_layers=2.5", "num_layers must be an integer, got 2.5"),
        ("rope_theta=fast", "rope_theta must be a number, got 'fast'"),
        ("rope_theta=none", "rope_theta must be a number, got None"),
        ("tie_embeddings=1", "tie_embeddings must be true or false, got 1"),
        ("bos_token_id=true", "bos_token_id must be an integer or none, got True"),
        ("eos_token_ids=5,b", "eos_token_ids must be an integer, got 'b'"),
        ("rope_scaling=[1]", r"rope_scaling must be an object or none, got \[1\]"),
        ("rope_scaling=" + "[" * 100000, "rope_scaling must be an object or none"),
    ],
)
def test_what_is_no_value_of_a_field_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^override .*{message}"):
        parsed(text)


def test_only_mappings_are_taken(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"override must map fields .* got list"):
        checked(["rope_theta"])  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=r"rope_theta must be positive and finite, got nan"):
        open_checkpoint(directory(tmp_path / "x"), override={"rope_theta": float("nan")})
    with pytest.raises(FormatError, match=r"override of eos_token_ids has 24, but .*x has 24 tokens"):
        open_checkpoint(tmp_path / "x", override={"eos_token_ids": [23, 24]})
    with pytest.raises(ValueError, match="hidden_act is 'silu', and override says 'relu2'"):
        open_checkpoint(tmp_path / "x", hidden_act="silu", override={"hidden_act": "relu2"})


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_fields_of_other_architectures_are_refused(kind: str, tmp_path: Path) -> None:
    path = directory(tmp_path / "x") if kind == "directory" else gguf_file(tmp_path / "x.gguf", {})
    for given, named in (({"residual_scale": 0.5}, "minicpm"), ({"num_experts": 4}, "qwen2_moe, qwen3_moe, maple")):
        with pytest.raises(ValueError, match=rf"changes nothing of .*x.*: it is of {named}.*architecture llama"):
            open_checkpoint(path, override=given)
    with open_checkpoint(path, override={"residual_scale": 1.0}) as same:
        assert same.config.residual_scale == 1.0


def test_errors_have_the_name_that_the_file_has(tmp_path: Path) -> None:
    path = directory(tmp_path / "x", num_hidden_layers=-1)
    with pytest.raises(FormatError, match=r"num_layers must be .* \(num_layers is num_hidden_layers in the file\)"):
        open_checkpoint(path)
    path = gguf_file(tmp_path / "x.gguf", {"llama.attention.head_count_kv": 3})
    both = r"no multiple of num_kv_heads=3 \(num_heads is llama.attention.head_count, num_kv_heads is llama.att"
    with pytest.raises(FormatError, match=both):
        open_checkpoint(path)
    with pytest.raises(FormatError, match=r"max_positions must be a positive integer, got 0$"):
        open_checkpoint(path, override={"num_kv_heads": 2, "max_positions": 0})


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_given_fields_count_and_the_others_stay(kind: str, tmp_path: Path) -> None:
    path = directory(tmp_path / "x") if kind == "directory" else gguf_file(tmp_path / "x.gguf", {})
    with open_checkpoint(path) as before, open_checkpoint(path, override=GIVEN) as after:
        assert after.config == dataclasses.replace(before.config, **GIVEN)
        assert after.override == GIVEN
        assert not before.override
    convert(path, tmp_path / "own", to="bittorch", override=GIVEN)
    with open_checkpoint(tmp_path / "own") as written:
        assert dataclasses.replace(written.config, eos_token_ids=(5, 6)) == after.config
        assert written.config.eos_token_ids[:2] == (5, 6)  # generation_config.json, which was copied, has more


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"hidden_act": "gelu"}, {"hidden_act": "silu"}),
        ({"rms_norm_eps": None}, {"rms_norm_eps": 1e-5}),
        ({"vocab_size": None}, {"vocab_size": 24}),
        ({"max_position_embeddings": None}, {"max_positions": 128}),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 5e5}}, {"rope_scaling": None}),
        ({"rope_scaling": "spiral", "rope_theta": 5e5}, {"rope_scaling": None}),
        ({"eos_token_id": -1}, {"eos_token_ids": [2, 3]}),
    ],
    ids=str,
)
def test_what_a_directory_lacks_or_has_wrong(changes: dict[str, Any], given: dict[str, Any], tmp_path: Path) -> None:
    path = directory(tmp_path / "x", **changes)
    with pytest.raises(FormatError):
        open_checkpoint(path)
    with open_checkpoint(path, override=given) as found:
        assert dataclasses.replace(found.config, eos_token_ids=(2, 3)) == LLAMA


@pytest.mark.parametrize(
    ("entries", "without", "given"),
    [
        ({}, ("llama.attention.layer_norm_rms_epsilon",), {"rms_norm_eps": 1e-5}),
        ({}, ("llama.context_length",), {"max_positions": 128}),
        ({"llama.rope.scaling.type": "spiral", "llama.rope.scaling.factor": 4.0}, (), {"rope_scaling": None}),
        ({"bittorch.activation_bits": 7}, (), {"activation_bits": None}),
        ({"llama.hidden_activation": "gelu"}, (), {"hidden_act": "silu"}),
    ],
    ids=str,
)
def test_what_a_gguf_file_lacks_or_has_wrong(
    entries: dict[str, Any], without: tuple[str, ...], given: dict[str, Any], tmp_path: Path
) -> None:
    path = gguf_file(tmp_path / "x.gguf", entries, without)
    with pytest.raises(FormatError):
        open_checkpoint(path)
    with open_checkpoint(path, override=given) as found, open_checkpoint(gguf_file(tmp_path / "y.gguf", {})) as usual:
        assert found.config == dataclasses.replace(usual.config, **given)


def test_a_stored_head_can_be_left_out(tmp_path: Path) -> None:
    """Without a warning, and without a trace of it."""
    save(from_memory(LLAMA, tensors(LLAMA), {}), tmp_path / "own")
    for path in (tmp_path / "own", gguf_file(tmp_path / "x.gguf", {})):
        with warnings.catch_warnings(), open_checkpoint(path, override={"tie_embeddings": True}) as found:
            warnings.simplefilter("error")
            assert found.config.tie_embeddings
            assert HEAD not in found.names
    save(model(BITNET), tmp_path / "tied")
    with pytest.raises(FormatError, match=r"lacks 1 tensors .*lm_head.weight"):
        open_checkpoint(tmp_path / "tied", override={"tie_embeddings": False})


def test_activation_bits_count_for_layers_with_their_own(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    save(from_memory(LLAMA, tensors(LLAMA), {}, {name: 24}), tmp_path / "own")
    with open_checkpoint(tmp_path / "own") as found:
        assert found.activation_bits(name) == 24
    with open_checkpoint(tmp_path / "own", override={"activation_bits": 8}) as found:
        assert {found.activation_bits(own) for own in found.names if own.endswith("_proj.weight")} == {8}


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A model of 300 tokens, without a tokenizer."""
    pytest.importorskip("tokenizers")
    random_model(changed(intermediate_size=128), head_depth=None).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tokenizers_from_every_place(text_model: Path, tmp_path: Path) -> None:
    wanted = byte_tokenizer()
    (tmp_path / "other").mkdir()
    wanted.save(tmp_path / "other")
    convert(text_model, tmp_path / "x.gguf", to="gguf-q2_0", tokenizer=tmp_path / "other", allow_lossy=True)
    for place in ("other", "other/tokenizer.json", "x.gguf"):
        found = LanguageModel.from_pretrained(text_model, tokenizer=tmp_path / place)
        assert found.tokenizer is not None
        assert found.tokenizer.encode("nanana is") == wanted.encode("nanana is")
    convert(text_model, tmp_path / "y", to="bittorch", tokenizer=tmp_path / "x.gguf")
    assert Tokenizer.from_source(tmp_path / "y").encode("nanana is") == wanted.encode("nanana is")


def test_given_end_tokens_are_the_only_ones(text_model: Path, tmp_path: Path) -> None:
    byte_tokenizer().save(text_model)
    assert (found := LanguageModel.from_pretrained(text_model)).tokenizer is not None
    assert found.tokenizer.eos_token_ids
    found = LanguageModel.from_pretrained(text_model, override={"eos_token_ids": [7]})
    assert found.tokenizer is not None
    assert (found.config.eos_token_ids, found.tokenizer.eos_token_ids) == ((7,), (7,))


def test_tokenizers_that_do_not_fit_are_refused(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    byte_tokenizer().save(tmp_path / "other")
    save(model(BITNET), tmp_path / "small")
    with pytest.raises(FormatError, match=r"other does not fit .*small: the tokenizer has 300 tokens, the model 24"):
        open_checkpoint(tmp_path / "small", tokenizer=tmp_path / "other")
    values = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    values["model"]["vocab"] = {text: n for text, n in values["model"]["vocab"].items() if n < 200}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(
        FormatError, match=r"tokenizer.json does not fit .*: the tokenizer has 200 tokens, the model 300"
    ):
        LanguageModel.from_pretrained(text_model, tokenizer=tmp_path / "other" / "tokenizer.json")


def test_what_is_no_tokenizer_is_refused(text_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "two").mkdir()
    byte_tokenizer().save(tmp_path / "two")
    (tmp_path / "two" / "tokenizer.model").write_bytes(b"")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text('{"model": {"vocab": 3}}')
    gguf_file(tmp_path / "no.gguf", {})
    for place, message in (
        ("nowhere", "no tokenizer at .*nowhere"),
        ("/dev/null", "no tokenizer at /dev/null"),
        ("empty", "empty has no tokenizer: none of gguf_tokenizer.json, tokenizer.json, tokenizer.model"),
        ("x.json", "x.json"),
        ("two/tokenizer.model", "lies beside tokenizer.json, which comes first"),
        ("bad", "has no vocabulary"),
        ("no.gguf", "carries no tokenizer"),
    ):
        with pytest.raises((FormatError, FileNotFoundError), match=message):
            open_checkpoint(text_model, tokenizer=tmp_path / place)


def test_sentencepiece_is_counted_when_it_is_read(text_model: Path, tmp_path: Path) -> None:
    """A tokenizer.model of ranks: 256 bytes and the 256 special tokens of LLaMA 3."""
    import base64

    (tmp_path / "ranks").mkdir()
    lines = [f"{base64.b64encode(bytes([n])).decode()} {n}" for n in range(256)]
    (tmp_path / "ranks" / "tokenizer.model").write_text("\n".join(lines) + "\n")
    with pytest.raises(FormatError, match=r"ranks does not fit .*: the tokenizer has 512 tokens, the model 300"):
        LanguageModel.from_pretrained(text_model, tokenizer=tmp_path / "ranks")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_field_has_a_type_or_a_reason(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^override of {field} (must be|is not possible: )"):
        checked({field: object()})
