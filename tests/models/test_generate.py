"""Generation: each answer as alone, ends, the window, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bittorch.models import Generation, GenerationConfig, LanguageModel, PrefixCache
from tests.models import tiny
from tests.models.vocabularies import byte_tokenizer

PROMPTS = tiny.prompts(5, 17, 1, 9)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny.model()


@pytest.fixture(scope="module")
def speaker() -> LanguageModel:
    """A model with a tokenizer; token i < 256 is byte i."""
    model = tiny.model()
    model.tokenizer = byte_tokenizer()
    return model


def tokens(model: LanguageModel, prompts: Any, **changes: Any) -> list[list[int]]:
    return Generation(model, prompts, GenerationConfig(**changes)).run().tokens


SETTINGS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.99},
    "penalised": {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1, "length_penalty": 1.1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("bits", [8, None])
def test_each_answer_is_the_one_it_has_alone(name: str, bits: int | None) -> None:
    model = tiny.model(activation_bits=bits)
    together = tokens(model, PROMPTS, max_new_tokens=12, seed=5, ignore_eos=True, **SETTINGS[name])
    for index, prompt in enumerate(PROMPTS):
        alone = tokens(model, [prompt], max_new_tokens=12, seed=5 + index, ignore_eos=True, **SETTINGS[name])
        assert together[index] == alone[0]


def test_greedy_answers_follow_the_logits(model: LanguageModel) -> None:
    (answer,) = tokens(model, PROMPTS[:1], max_new_tokens=8)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0] + answer]))[0]
    assert logits[len(PROMPTS[0]) - 1 : -1].argmax(-1).tolist() == answer


def test_seeds_reproduce(model: LanguageModel) -> None:
    settings = {"temperature": 1.5, "max_new_tokens": 10}
    first = tokens(model, [PROMPTS[0]] * 2, seed=1, **settings)
    assert first == tokens(model, [PROMPTS[0]] * 2, seed=1, **settings)
    assert first != tokens(model, [PROMPTS[0]] * 2, seed=3, **settings)
    assert first[0] != first[1]
    assert tokens(model, PROMPTS[:1], **settings) != tokens(model, PROMPTS[:1], **settings)


def test_any_integer_is_a_seed(model: LanguageModel) -> None:
    settings = {"temperature": 1.5, "max_new_tokens": 10}
    first = tokens(model, PROMPTS[:2], seed=2**64 - 1, **settings)
    assert tokens(model, PROMPTS[:2], seed=-1, **settings) == first
    assert tokens(model, PROMPTS[1:2], seed=0, **settings) == first[1:]


def test_the_random_numbers_of_the_caller_are_left_alone(model: LanguageModel) -> None:
    before = torch.get_rng_state()
    tokens(model, PROMPTS[:1], temperature=1.0, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_end_token_outside_the_vocabulary_never_comes(model: LanguageModel) -> None:
    free = tokens(model, PROMPTS[:1], max_new_tokens=4)
    model.config = dataclasses.replace(model.config, eos_token_ids=(tiny.CONFIG.vocab_size,))
    try:
        assert tokens(model, PROMPTS[:1], max_new_tokens=4, length_penalty=2.0) == free
    finally:
        model.config = tiny.CONFIG


def test_end_tokens_end_single_answers(model: LanguageModel) -> None:
    free = tokens(model, PROMPTS, max_new_tokens=10)
    model.config = dataclasses.replace(model.config, eos_token_ids=(free[1][3],))
    try:
        run = Generation(model, PROMPTS, GenerationConfig(max_new_tokens=10)).run()
        ended = [answer[: answer.index(free[1][3]) + 1] if free[1][3] in answer else answer for answer in free]
        assert run.tokens == ended
        assert run.finish_reasons[1] == "eos"
        assert run.stats.new_tokens == sum(map(len, ended))
        assert tokens(model, PROMPTS, max_new_tokens=10, ignore_eos=True) == free
    finally:
        model.config = tiny.CONFIG


@pytest.mark.parametrize("keep", [0, 3, 11])
def test_the_window_slides_as_a_new_prompt(model: LanguageModel, keep: int) -> None:
    prompt = PROMPTS[1]
    (answer,) = tokens(model, [prompt], max_new_tokens=40, context=24, sliding_keep=keep)
    held = list(prompt)
    expected: list[int] = []
    for _ in range(40):
        if len(held) > 24:
            sequence = prompt + expected
            held = sequence[:keep] + sequence[-(12 - keep) :]
        with torch.inference_mode():
            expected.append(int(model(torch.tensor([held]))[0, -1].argmax()))
        held.append(expected[-1])
    assert answer == expected


def test_rows_slide_on_their_own(model: LanguageModel) -> None:
    together = tokens(model, PROMPTS, max_new_tokens=30, context=20)
    assert together == [tokens(model, [prompt], max_new_tokens=30, context=20)[0] for prompt in PROMPTS]


def test_overflow_may_stop_or_be_refused(model: LanguageModel) -> None:
    stopped = Generation(model, PROMPTS[:2], GenerationConfig(max_new_tokens=15, context=20, overflow="stop")).run()
    assert stopped.finish_reasons == ["length", "context"]
    assert list(map(len, stopped.tokens)) == [15, 4]
    with pytest.raises(
        ValueError, match="prompt 1 has 17 tokens, which with max_new_tokens=15 outgrow the context of 20"
    ):
        Generation(model, PROMPTS[:2], GenerationConfig(max_new_tokens=15, context=20, overflow="error"))
    assert len(tokens(model, [PROMPTS[1]], max_new_tokens=4, context=20, overflow="error")[0]) == 4


def test_stop_texts_end_an_answer_and_are_cut_off(speaker: LanguageModel) -> None:
    whole = speaker.generate([PROMPTS[0]], max_new_tokens=40)[0]
    stop = whole[10:13]
    run = speaker.stream([PROMPTS[0]], max_new_tokens=40, stop=("never there", stop))
    pieces = list(run)
    assert run.texts[0] == whole[: whole.index(stop)]
    assert "".join(piece.text for piece in pieces) == run.texts[0]
    assert run.finish_reasons == ["stop"]


def test_pieces_make_the_texts(speaker: LanguageModel) -> None:
    run = speaker.stream(["one", "other"], max_new_tokens=12)
    pieces = list(run)
    for index, text in enumerate(run.texts):
        own = [piece for piece in pieces if piece.index == index]
        assert (
            "".join(piece.text for piece in own) == text == speaker.generate(["one", "other"], max_new_tokens=12)[index]
        )
        assert [piece.token for piece in own] == run.tokens[index]
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + ["length"]


def test_an_answer_may_be_left(speaker: LanguageModel) -> None:
    run = speaker.stream("text", max_new_tokens=100)
    for number, _ in enumerate(run):
        if number == 4:
            break
    assert len(run.tokens[0]) == 5
    assert run.finish_reasons == [None]


def test_a_conversation_is_not_computed_again() -> None:
    model = tiny.model(activation_bits=None)
    prefix = PrefixCache(model.new_cache(1, 100))
    first = model.stream([PROMPTS[1]], max_new_tokens=10, prefix=prefix).run()
    assert first.tokens == tokens(model, [PROMPTS[1]], max_new_tokens=10)
    assert prefix.tokens == PROMPTS[1] + first.tokens[0][:-1]  # nothing was predicted from the last
    turn = PROMPTS[1] + first.tokens[0] + PROMPTS[0]
    assert prefix.reuse(turn) == len(turn) - len(PROMPTS[0]) - 1
    second = model.stream([turn], max_new_tokens=10, prefix=prefix).run()
    assert second.tokens == tokens(model, [turn], max_new_tokens=10)
    stats = second.stats
    assert (stats.prompt_tokens, stats.kept_tokens) == (len(turn), len(turn) - len(PROMPTS[0]) - 1)
    assert stats.prefill_tokens_per_second == (len(PROMPTS[0]) + 1) / stats.time_to_first_token
    other = PROMPTS[1][:5] + PROMPTS[3]
    assert prefix.reuse(other) == 5
    assert model.stream([other], max_new_tokens=10, prefix=prefix).run().tokens == tokens(
        model, [other], max_new_tokens=10
    )


def test_a_conversation_slides_in_its_cache() -> None:
    model = tiny.model(activation_bits=None)
    prefix = PrefixCache(model.new_cache(1, 20))
    answer = model.stream([PROMPTS[1]], max_new_tokens=30, prefix=prefix).run().tokens
    assert answer == tokens(model, [PROMPTS[1]], max_new_tokens=30, context=20)
    assert prefix.cache.lengths == [len(prefix.tokens)]


def test_a_prefix_is_of_one_conversation(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="of one conversation, got 2 prompts"):
        model.stream(PROMPTS[:2], prefix=PrefixCache(model.new_cache(1, 20)))
    with pytest.raises(ValueError, match="one empty row, got 2 rows"):
        PrefixCache(model.new_cache(2, 20))


def test_figures(model: LanguageModel) -> None:
    stats = Generation(model, PROMPTS, GenerationConfig(max_new_tokens=5)).run().stats
    assert (stats.prompt_tokens, stats.new_tokens, stats.decode_tokens) == (32, 20, 16)
    assert stats.tokens_per_second is not None
    assert stats.tokens_per_second > 0
    assert stats.prefill_tokens_per_second is not None
    assert stats.peak_bytes is not None
    assert stats.peak_bytes > 1 << 20


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([], {}, "there is no prompt"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 300]], {}, "from 1 to 300, the vocabulary 0 to 299"),
        ([[1] * 129], {}, "prompt 0 has 129 tokens, the context 128"),
        ([[1] * 9], {"context": 8}, "prompt 0 has 9 tokens, the context 8; shorten it or allow a larger"),
        ([[1]], {"context": 8, "sliding_keep": 4}, "sliding_keep=4 must be less than half of the context of 8"),
        (["text"], {}, "prompt 0 is text, and the model has no tokenizer"),
        ([[1]], {"stop": "x"}, "stop texts need a tokenizer"),
    ],
    ids=str,
)
def test_bad_prompts(model: LanguageModel, prompts: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.stream(prompts, **changes)


def test_a_list_of_numbers_is_no_list_of_prompts(model: LanguageModel) -> None:
    with pytest.raises(TypeError, match="a list of such lists"):
        model.stream([1, 2, 3])


def test_logits_that_are_not_finite_are_an_error() -> None:
    broken = tiny.model(ternary=False)
    broken.norm.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the logits of prompt 0 hold nan after 0 new tokens"):
        broken.stream([[1, 2]], max_new_tokens=2).run()
