"""What a GGUF file leaves open of its tokenizer: decided as llama.cpp decides it, and said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")

from bittorch.models import LanguageModel, Tokenizer  # noqa: E402
from bittorch.models.io import CheckpointWarning, convert, open_checkpoint, save  # noqa: E402
from bittorch.models.pretokenizers import LLAMA3  # noqa: E402
from tests import helpers  # noqa: E402
from tests.models.io.gguf_files import dense_values, write  # noqa: E402
from tests.models.io.tiny import LLAMA, model  # noqa: E402
from tests.models.test_tokenizer import gguf, reference, trained  # noqa: E402, F401
from tests.models.vocabularies import TEXTS  # noqa: E402

Entries = dict[str, Any]
PRE = "tokenizer.ggml.pre"


def without_pre(trained: Any) -> Entries:  # noqa: F811
    entries = gguf(trained, "")
    del entries[PRE]
    return entries


def padded(entries: Entries, count: int, begin: int | None) -> Entries:
    """With ``count`` tokens, of which number ``begin`` begins a text as in LLaMA 3."""
    texts = [*entries["tokenizer.ggml.tokens"]]
    texts += [f"<unused {number}>" for number in range(len(texts), count)]
    types = [*entries["tokenizer.ggml.token_type"], *[1] * (count - len(entries["tokenizer.ggml.token_type"]))]
    if begin is not None:
        texts[begin], types[begin] = "<|begin_of_text|>", 3
        entries = {**entries, "tokenizer.ggml.bos_token_id": begin}
    return {**entries, "tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types}


# FIELD L3
@pytest.mark.parametrize(("count", "begin"), [(128256, 128000), (128256, None), (128300, 128000)])
def test_the_vocabulary_of_llama_3_is_known_by_its_size(trained: Any, count: int, begin: int | None) -> None:  # noqa: F811
    entries = padded(without_pre(trained), count, begin)
    with pytest.warns(CheckpointWarning, match="vocabulary is that of LLaMA 3, so 'llama-bpe' is taken") as caught:
        tokenizer = Tokenizer.from_source(entries)
    assert len(caught) == 1
    expected = reference(trained, LLAMA3, True)
    for name, text in TEXTS.items():
        if name != "special":
            tokens = tokenizer.encode(text, parse_special=False)
            assert tokens == [entries["tokenizer.ggml.bos_token_id"], *expected.encode(text).ids], name


def test_another_vocabulary_is_cut_by_the_default_with_a_loud_warning(trained: Any) -> None:  # noqa: F811  # FIELD L3
    with pytest.warns(CheckpointWarning, match=r"'default' is taken.*IS TOKENIZED WRONGLY.*Give pre_tokenizer="):
        silent = Tokenizer.from_source(without_pre(trained))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = Tokenizer.from_source(gguf(trained, "default"))
    for text in TEXTS.values():
        assert silent.encode(text) == said.encode(text)


def gguf_file(path: Path, entries: Entries) -> Path:
    write(path / "x.gguf", "llama", LLAMA, "TQ2_0", dense_values(LLAMA, "TQ2_0"), entries)
    return path / "x.gguf"


def test_the_pre_tokenizer_can_be_said(trained: Any, tmp_path: Path) -> None:  # noqa: F811  # FIELD L3
    path = gguf_file(tmp_path, without_pre(trained))
    named = Tokenizer.from_source(gguf(trained, "smollm"))
    default = Tokenizer.from_source(gguf(trained, "default"))
    text = "It's 12345 o'clock"
    assert named.encode(text) != default.encode(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*the tokenizer has 500 tokens, the model 24")
        loaded = LanguageModel.from_pretrained(path, pre_tokenizer="smollm")
        convert(path, tmp_path / "folder", to="bittorch", pre_tokenizer="smollm")
        convert(path, tmp_path / "y.gguf", to="gguf-tq2_0", pre_tokenizer="smollm")
        for source in (tmp_path / "folder", tmp_path / "y.gguf"):
            with open_checkpoint(source) as found:
                assert Tokenizer.from_source(found.tokenizer_source).encode(text) == named.encode(text)
        with open_checkpoint(tmp_path / "folder", pre_tokenizer="default") as found:
            assert Tokenizer.from_source(found.tokenizer_source).encode(text) == default.encode(text)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(text) == named.encode(text)


def test_a_pre_tokenizer_where_none_belongs(trained: Any, tmp_path: Path) -> None:  # noqa: F811
    path = gguf_file(tmp_path, without_pre(trained))
    with pytest.raises(ValueError, match="the pre-tokenizer 'secret' is not known"):
        open_checkpoint(path, pre_tokenizer="secret")
    Tokenizer.from_source(gguf(trained, "smollm")).save(tmp_path)
    save(model(LLAMA, tokenizer=tmp_path), tmp_path / "folder", to="bittorch")
    for source in (tmp_path / "folder", gguf_file(tmp_path, {"tokenizer.ggml.model": "llama"})):
        with pytest.raises(ValueError, match="pre_tokenizer='smollm' is for byte-level vocabularies of GGUF files"):
            open_checkpoint(source, pre_tokenizer="smollm")


def ends(entries: Entries, *more: str, kind: int = 3, **given: int) -> set[str]:
    """The texts of the tokens that end a turn, in a vocabulary with ``more`` at its end."""
    texts = [*entries["tokenizer.ggml.tokens"], *more]
    types = [*entries["tokenizer.ggml.token_type"], *[kind] * len(more)]
    said = {f"tokenizer.ggml.{key}_token_id": number for key, number in given.items()}
    vocabulary = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": types}
    tokenizer = Tokenizer.from_source({**entries, **vocabulary, **said})
    special = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if token.special}
    found = {texts[number] for number in tokenizer.eos_token_ids}
    assert found <= special | set(given)
    return found


# FIELD L13
@helpers.each(
    "text",
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "</s>",
        "<EOT>",
        "[EOS]",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<|fim_pad|>",
        "<|file_sep|>",
    ],
)
@helpers.each("kind", [1, 3, 4])
def test_turns_end_at_tokens_that_llama_cpp_knows_by_name(trained: Any, text: str, kind: int) -> None:  # noqa: F811
    """Whatever their type; the one that the file names ends a text too."""
    assert ends(gguf(trained, "gpt-2"), text, "<|other|>", kind=kind) == {"<|end|>", text}


def test_ends_that_llama_cpp_leaves_out(trained: Any) -> None:  # noqa: F811  # FIELD L13
    """Where <|end|> and </s> go on with a message."""
    entries = gguf(trained, "gpt-2", **{"tokenizer.ggml.eos_token_id": 1})
    assert ends(entries) == {"<|start|>", "<|end|>"}
    assert ends(entries, "<|return|>", "<|call|>") == {"<|start|>", "<|return|>", "<|call|>"}
    assert ends(entries, "<|flush|>", "<|calls|>") == {"<|start|>", "<|flush|>", "<|calls|>"}
    assert ends(entries, "<|return|>") == {"<|start|>", "<|end|>", "<|return|>"}
    assert ends(entries, "</s>", "<|tool_response>") == {"<|start|>", "<|end|>", "<|tool_response>"}


def test_ends_by_entries(trained: Any) -> None:  # noqa: F811  # FIELD L13
    found = ends(gguf(trained, "gpt-2"), "<a>", "<b>", "<c>", eot=500, eom=501, fim_pad=502)
    assert found == {"<|end|>", "<a>", "<b>", "<c>"}
    assert ends(gguf(trained, "gpt-2"), eot=10**6) == {"<|end|>"}


def test_special_tokens_of_pieces_without_entries() -> None:
    """llama.cpp takes tokens 1 and 2 where a file does not say, if they are control tokens."""
    entries = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<bos>", "<stop>", "\u2581", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    tokenizer = Tokenizer.from_source(entries)
    assert tokenizer.special_tokens == {"bos_token": "<bos>", "eos_token": "<stop>"}
    assert tokenizer.encode("a")[0] == 1
    plain = Tokenizer.from_source({**entries, "tokenizer.ggml.token_type": [2, 1, 1, 1, 1]})
    assert plain.special_tokens == {}


def test_entries_of_a_tokenizer_that_are_not_supported(trained: Any) -> None:  # noqa: F811
    with pytest.warns(CheckpointWarning, match=r"'tokenizer.ggml.suppress_tokens' = \[3\].*They are ignored"):
        Tokenizer.from_source(gguf(trained, "gpt-2", **{"tokenizer.ggml.suppress_tokens": [3]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmless = {"tokenizer.ggml.suppress_tokens": [], "tokenizer.chat_template.tools": "x"}
        Tokenizer.from_source(gguf(trained, "gpt-2", **harmless))
