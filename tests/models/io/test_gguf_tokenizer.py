"""The tokenizer of a directory in a GGUF file, read by gguf-py, and back in a directory, read by transformers."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest

from bittorch.models import LanguageModel, ModelConfig, Tokenizer
from bittorch.models.io import CheckpointWarning, FormatError, convert, from_memory, open_checkpoint, save
from bittorch.models.pretokenizers import GPT2, PATTERNS
from tests.models.io.tiny import LLAMA, tensors

tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ("<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>", "<pad>", "<stop>")
BOS, START, END, TEXT_END, UNK, PAD, STOP = range(256, 256 + len(SPECIAL))
TEMPLATES = {
    "default": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    "tool_use": "{{ bos_token }}tools",
}
CONFIG = dataclasses.replace(LLAMA, vocab_size=263, bos_token_id=None, eos_token_ids=(TEXT_END,))


def directory(path: Path, config: ModelConfig = CONFIG, **files: Any) -> Path:
    """A chat model whose end tokens stand in three files; ``files`` are changes of the JSON files, by stem."""
    values = tensors(config, "channel")
    save(from_memory(config, values, {}), path, to="bittorch")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in SPECIAL])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    backend.save(str(path / "tokenizer.json"))
    defaults = {
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {"content": "<|im_end|>", "special": True},
            "unk_token": None,
            "pad_token": "<pad>",
            "chat_template": [{"name": name, "template": text} for name, text in TEMPLATES.items()],
        },
        "special_tokens_map": {"unk_token": "<unk>"},
        "generation_config": {"eos_token_id": [END, STOP], "transformers_version": "5.23.0"},
    }
    for stem, content in defaults.items():
        (path / f"{stem}.json").write_text(json.dumps({**content, **files.get(stem, {})}))
    return path


def entries(path: Path) -> dict[str, Any]:
    """As gguf-py reads them."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_a_chat_model_keeps_its_special_tokens_and_templates(tmp_path: Path) -> None:  # FIELD L4
    transformers = pytest.importorskip("transformers")
    first = directory(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    found = entries(tmp_path / "x.gguf")
    numbers = {"bos": BOS, "eos": END, "eot": TEXT_END, "eom": STOP, "unknown": UNK, "padding": PAD}
    assert {key: found[f"tokenizer.ggml.{key}_token_id"] for key in numbers} == numbers
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert found["tokenizer.chat_template"] == TEMPLATES["default"]
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    assert found["tokenizer.chat_template.tool_use"] == TEMPLATES["tool_use"]
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    convert(tmp_path / "x.gguf", tmp_path / "second", to="bittorch")
    one, gguf_file, two = (
        Tokenizer.from_source(open_checkpoint(tmp_path / name).tokenizer_source)
        for name in ("first", "x.gguf", "second")
    )
    assert one.special_tokens == gguf_file.special_tokens == two.special_tokens
    assert set(one.eos_token_ids) == {END, STOP}
    assert set(gguf_file.eos_token_ids) == set(two.eos_token_ids) == {END, STOP, TEXT_END}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "second")
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token) == (
        "<s>",
        "<|im_end|>",
        "<pad>",
        "<unk>",
    )
    assert theirs.chat_template == TEMPLATES
    assert theirs.encode("hi") == one.encode("hi") == gguf_file.encode("hi") == two.encode("hi")


def test_a_model_stops_where_its_directory_does(tmp_path: Path) -> None:
    """FIELD L4: the same end tokens whatever the file, with and without the tokenizer."""
    from bittorch.models.continuation import end_tokens

    convert(directory(tmp_path / "first"), tmp_path / "x.gguf", to="gguf-tq2_0")
    convert(tmp_path / "first", tmp_path / "own", to="bittorch-base3")
    for name in ("first", "x.gguf", "own"):
        model = LanguageModel.from_pretrained(tmp_path / name)
        assert end_tokens(model) == [END, TEXT_END, STOP]
        assert model.config.eos_token_ids == (TEXT_END, END, STOP)
        assert LanguageModel.from_pretrained(tmp_path / name, tokenizer=False).config == model.config


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"generation_config": {"eos_token_id": [END, STOP, 1, 2]}},
            "the end tokens 1, 2, for which GGUF has no",
        ),
        (
            {
                "generation_config": {
                    "num_beams": 4,
                    "top_k": True,
                    "temperature": float("nan"),
                    "min_p": "a",
                    "top_p": 0.9,
                }
            },
            r": min_p, num_beams, temperature, top_k of generation_config\.json$",
        ),
        ({"generation_config": {"do_sample": False, "top_p": 0.9}}, r": do_sample of generation_config\.json$"),
    ],
)
def test_what_gguf_cannot_hold_is_named(files: dict[str, Any], message: str, tmp_path: Path) -> None:  # FIELD L4
    first = directory(tmp_path / "first", **files)
    with pytest.warns(CheckpointWarning, match=message):
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    with open_checkpoint(first) as before, open_checkpoint(tmp_path / "x.gguf") as after:
        assert before.config.eos_token_ids == after.config.eos_token_ids


SAMPLING = {"do_sample": True, "temperature": 0.75, "top_k": 20, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5}


def test_sampling_defaults_go_along(tmp_path: Path) -> None:  # FIELD L4
    """Under llama.cpp's names, and back: with the end tokens, which transformers takes from this file alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        convert(directory(tmp_path / "first", generation_config=SAMPLING), tmp_path / "x.gguf", to="gguf-tq2_0")
    found = {
        key.rpartition(".")[2]: value for key, value in entries(tmp_path / "x.gguf").items() if ".sampling." in key
    }
    assert found == {"temp": 0.75, "top_k": 20, "top_p": 0.5, "min_p": 0.25, "penalty_repeat": 1.5}
    convert(tmp_path / "x.gguf", tmp_path / "y.gguf", to="gguf-tq1_0")
    convert(tmp_path / "y.gguf", tmp_path / "second", to="bittorch")
    values = json.loads((tmp_path / "second" / "generation_config.json").read_text())
    assert {key: values[key] for key in SAMPLING} == SAMPLING
    assert set(values["eos_token_id"]) >= {END, STOP}
    assert LanguageModel.from_pretrained(tmp_path / "y.gguf", tokenizer=False).generation_defaults == SAMPLING


@pytest.mark.parametrize("name", ["first", "x.gguf"])
def test_saved_models_keep_what_they_do_not_use(name: str, tmp_path: Path) -> None:  # FIELD L4
    """Further chat templates, and how the model is to be sampled."""
    transformers = pytest.importorskip("transformers")
    convert(directory(tmp_path / "first", generation_config=SAMPLING), tmp_path / "x.gguf", to="gguf-tq2_0")
    LanguageModel.from_pretrained(tmp_path / name).save_pretrained(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == TEMPLATES
    kept = transformers.GenerationConfig.from_pretrained(tmp_path / "saved")
    assert {key: getattr(kept, key) for key in SAMPLING} == SAMPLING
    assert set(kept.eos_token_id) >= {END, STOP}
    LanguageModel.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "y.gguf", to="gguf-tq2_0")
    found = entries(tmp_path / "y.gguf")
    assert (found["general.sampling.temp"], found["tokenizer.chat_template.tool_use"]) == (0.75, TEMPLATES["tool_use"])


def test_kinds_of_vocabulary_that_ggml_reads_otherwise(tmp_path: Path) -> None:  # FIELD L4
    """They go along for bittorch alone, and a warning says so."""
    first = directory(tmp_path / "first")
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    backend.save(str(first / "tokenizer.json"))
    with pytest.warns(CheckpointWarning, match="a vocabulary of kind Unigram"):
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    assert entries(tmp_path / "x.gguf")["tokenizer.ggml.model"] == "no_vocab"
    with open_checkpoint(tmp_path / "x.gguf") as found:
        assert Tokenizer.from_source(found.tokenizer_source).encode("ab") == [1, 2]
    (first / "tokenizer.json").unlink()
    (first / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.warns(CheckpointWarning, match=r"tokenizer\.model, which has ranks of tiktoken; write tokenizer"):
        convert(first, tmp_path / "y.gguf", to="gguf-tq2_0")


def test_tokens_beside_tokenizer_json_go_along(tmp_path: Path) -> None:
    """Those that only tokenizer_config.json or added_tokens.json has were lost on the way."""
    first = directory(tmp_path / "first", dataclasses.replace(CONFIG, vocab_size=266))
    (first / "added_tokens.json").write_text('{"<later>": 264}')
    convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    found = entries(tmp_path / "x.gguf")
    assert found["tokenizer.ggml.tokens"][-3:] == ["<|reserved_token_263|>", "<later>", "[PAD265]"]
    assert found["tokenizer.ggml.token_type"][-3:] == [4, 4, 5]
    with open_checkpoint(tmp_path / "x.gguf") as opened:
        ours = Tokenizer.from_source(opened.tokenizer_source)
    assert ours.encode("a<later>", add_special_tokens=False)[-1] == 264
    assert Tokenizer.from_source(first).encode("a<later>") == ours.encode("a<later>")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_models_go_along(kind: str, tmp_path: Path) -> None:  # FIELD L4
    sentencepiece = pytest.importorskip("sentencepiece")
    first = directory(tmp_path / "first", generation_config={"eos_token_id": 120})
    words = "the quick brown fox jumps over a lazy dog while seven wizards box"
    (first / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 9),
        model_prefix=str(first / "tokenizer"),
        vocab_size=90,
        model_type=kind,
        byte_fallback=False,
        hard_vocab_limit=False,
        minloglevel=2,
        normalization_rule_name="nmt_nfkc",
    )
    (first / "tokenizer.vocab").unlink()
    decoder = {"120": {"content": "<|im_end|>", "special": True}}
    settings = {"eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    (first / "tokenizer_config.json").write_text(json.dumps(settings))
    (first / "special_tokens_map.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(first / "tokenizer.model"))
    found = entries(tmp_path / "x.gguf")
    assert found["tokenizer.ggml.model"] == {"bpe": "llama", "unigram": "t5"}[kind]
    assert found["tokenizer.ggml.tokens"][: len(theirs)] == [theirs.id_to_piece(n) for n in range(len(theirs))]
    assert found["tokenizer.ggml.scores"][: len(theirs)] == pytest.approx(
        [theirs.get_score(n) for n in range(len(theirs))]
    )
    numbers = {"bos": 1, "eos": 120, "unknown": 0}
    assert {key: found[f"tokenizer.ggml.{key}_token_id"] for key in numbers} == numbers
    with open_checkpoint(tmp_path / "x.gguf") as opened:
        ours = Tokenizer.from_source(opened.tokenizer_source)
    for text in ("the fox boxes", "a  dog, ﬁne", " seven "):
        assert ours.encode(text) == [1, *theirs.encode(text)]
    assert ours.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "smollm", "gpt-2", None])
def test_the_pre_tokenizer_is_found_by_its_patterns(name: str | None, tmp_path: Path) -> None:
    first = directory(tmp_path / "first")
    values = json.loads((first / "tokenizer.json").read_text())
    patterns = ("[a-z]+",) if name is None else PATTERNS[name]
    whole = {"type": "Split", "behavior": "Isolated", "invert": False}
    splits = [{**whole, "pattern": {"Regex": pattern}} for pattern in patterns if pattern != GPT2]
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits if split["pattern"]["Regex"] == r"\p{N}" else split for split in splits]
    last = {"type": "ByteLevel", "use_regex": GPT2 in patterns}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, last]}
    (first / "tokenizer.json").write_text(json.dumps(values))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    assert entries(tmp_path / "x.gguf")["tokenizer.ggml.pre"] == (name or "gpt-2")
    assert any("how tokenizer.json cuts text" in str(warning.message) for warning in caught) == (name is None)


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "MergedWithNext", "invert": False},
    ],
    ids=["punctuation", "merged"],
)
def test_a_step_that_no_pattern_says_is_told_of(step: dict[str, Any], tmp_path: Path) -> None:
    """As in Falcon's tokenizers: without it the rest would be smollm's or gpt-2's."""
    first = directory(tmp_path / "first")
    values = json.loads((first / "tokenizer.json").read_text())
    digits = [{"type": "Digits", "individual_digits": True}] if step["type"] == "Punctuation" else []
    steps = [step, *digits, {"type": "ByteLevel", "use_regex": True}]
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (first / "tokenizer.json").write_text(json.dumps(values))
    with pytest.warns(CheckpointWarning, match="how tokenizer.json cuts text into words"):
        convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")


def test_templates_in_a_directory_of_their_own_go_along(tmp_path: Path) -> None:
    first = directory(tmp_path / "first", tokenizer_config={"chat_template": "of the configuration"})
    (first / "chat_template.jinja").write_text("default")
    (first / "additional_chat_templates").mkdir()
    (first / "additional_chat_templates" / "rag.jinja").write_text("ü")
    convert(first, tmp_path / "second", to="bittorch-base3")
    assert (tmp_path / "second" / "additional_chat_templates" / "rag.jinja").read_text() == "ü"
    convert(first, tmp_path / "x.gguf", to="gguf-tq2_0")
    found = entries(tmp_path / "x.gguf")
    assert (found["tokenizer.chat_template"], found["tokenizer.chat_template.rag"]) == ("default", "ü")
    convert(tmp_path / "x.gguf", tmp_path / "third", to="bittorch")
    assert (tmp_path / "third" / "additional_chat_templates" / "rag.jinja").read_text() == "ü"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_links_out_of_the_directory_are_refused(name: str, tmp_path: Path) -> None:  # FIELD R18
    first = directory(tmp_path / "first")
    (tmp_path / "secret").write_text("{}")
    (first / name).unlink(missing_ok=True)
    (first / name).symlink_to(tmp_path / "secret")
    for attempt in (
        lambda: convert(first, tmp_path / "second", to="bittorch"),
        lambda: convert(first, tmp_path / "x.gguf", to="gguf-tq2_0"),
        lambda: Tokenizer.from_source(first),
    ):
        with pytest.raises(FormatError, match=rf"{name} is a link to .*secret, outside of the directory"):
            attempt()
    assert not (tmp_path / "second").exists()


def test_links_within_a_checkpoint_and_in_the_hub_cache_are_followed(tmp_path: Path) -> None:  # FIELD R18
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    snapshot.parent.mkdir()
    directory(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / ".." / "blobs" / str(number))
    convert(snapshot, tmp_path / "second", to="bittorch-base3")
    assert Tokenizer.from_source(snapshot).special_tokens["eos_token"] == "<|im_end|>"
    assert not (tmp_path / "second" / "tokenizer.json").is_symlink()
    (tmp_path / "second" / "tokenizer.json").rename(tmp_path / "second" / "kept.json")
    (tmp_path / "second" / "tokenizer.json").symlink_to("kept.json")
    assert Tokenizer.from_source(tmp_path / "second").encode("hi") == Tokenizer.from_source(snapshot).encode("hi")


def test_end_tokens_of_a_wrong_type(tmp_path: Path) -> None:
    first = directory(tmp_path / "first", generation_config={"eos_token_id": ["x"]})
    with pytest.raises(FormatError, match=r"generation_config\.json: eos_token_id must be numbers .*, got \['x'\]"):
        open_checkpoint(first)


def test_bytes_of_entries_stay_bytes(tmp_path: Path) -> None:
    """llama.cpp takes the normalisation rules of SentencePiece as an array of uint8 alone."""
    rules = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": bytes([0, 200, 7])}
    save(from_memory(LLAMA, tensors(LLAMA, "channel"), rules), tmp_path / "x.gguf", to="gguf-tq2_0")
    convert(tmp_path / "x.gguf", tmp_path / "y", to="bittorch")
    convert(tmp_path / "y", tmp_path / "z.gguf", to="gguf-tq2_0")
    for name in ("x.gguf", "z.gguf"):
        field = gguf.GGUFReader(tmp_path / name).fields["tokenizer.ggml.precompiled_charsmap"]
        assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8]
        assert field.contents() == [0, 200, 7]
