import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from bittorch.models.streaming import Detokenizer, TextStream
from tests.models.vocabularies import TEXTS, byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_whole_characters(name: str) -> None:
    stream = Detokenizer(TOKENIZER)
    pieces = [stream.push(token) for token in TOKENIZER.encode(TEXTS[name])] + [stream.finish()]
    assert "".join(pieces) == TEXTS[name]
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    stream = Detokenizer(TOKENIZER)
    assert "".join([stream.push(token) for token in TOKENIZER.encode(text)]) + stream.finish() == text


@given(st.lists(st.integers(0, 299), max_size=7))
@settings(max_examples=200, deadline=None)
def test_broken_bytes_come_as_replacement_characters(tokens: list[int]) -> None:
    stream = Detokenizer(TOKENIZER)
    assert "".join([stream.push(token) for token in tokens]) + stream.finish() == TOKENIZER.decode(tokens)


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    stream = Detokenizer(TOKENIZER)
    assert any(stream.push(0x80) for _ in range(10))


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_text_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    # The first to be complete ends the text; among those complete at once, the one that began first.
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped == bool(ends)


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None)
    assert stream.push(5) + stream.finish() == ""
