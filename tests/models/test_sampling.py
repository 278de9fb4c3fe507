import math
from typing import Any

import pytest
import torch

from bittorch.models import GenerationConfig
from bittorch.models.sampling import History, candidates, check_logits, draw, log_probabilities, penalize
from tests import helpers

transformers = pytest.importorskip("transformers")
LOGITS = helpers.randn(200, seed=4) * 3


def warped(**settings: Any) -> torch.Tensor:
    """Probabilities by the rules of transformers, in its order."""
    processors = transformers.generation.logits_process
    scores = LOGITS[None].clone()
    steps = [
        ("temperature", processors.TemperatureLogitsWarper),
        ("top_k", processors.TopKLogitsWarper),
        ("top_p", processors.TopPLogitsWarper),
        ("min_p", processors.MinPLogitsWarper),
        ("typical_p", processors.TypicalLogitsWarper),
    ]
    for name, step in steps:
        if name in settings:
            scores = step(settings[name])(None, scores)
    return scores[0].softmax(0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_k": 5000},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "typical_p": 0.7},
        {"temperature": 1.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    ],
    ids=str,
)
def test_filters_equal_those_of_transformers(settings: dict[str, Any]) -> None:
    tokens, p = candidates(LOGITS, GenerationConfig(**settings))
    own = torch.zeros(200).index_put((tokens,), p)
    torch.testing.assert_close(own, warped(**settings), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 0.2}, {"min_p": 1e-4}, {"top_p": 0.9, "min_p": 0.05}],
    ids=str,
)
def test_a_large_vocabulary_gives_the_same(settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = helpers.randn(5000, seed=5) * 4
    config = GenerationConfig(temperature=1.0, **settings)
    tokens, p = candidates(logits, config)
    monkeypatch.setattr("bittorch.models.sampling.MANY", 5000)  # all of them sorted
    expected_tokens, expected = candidates(logits, config)
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(p, expected)


def test_at_least_one_token_stays() -> None:
    tokens, p = candidates(LOGITS, GenerationConfig(temperature=1.0, top_p=1e-6, typical_p=1e-6, min_p=1.0))
    assert tokens.tolist() == [int(LOGITS.argmax())]
    assert p.tolist() == [1.0]
    for name in ("top_p", "typical_p"):  # 1e-60 is 0 in float32
        tokens, p = candidates(LOGITS, GenerationConfig(temperature=1.0, **{name: 1e-60}))
        assert (len(tokens), p.tolist()) == (1, [1.0])


def history(prompt: list[int], answer: list[int]) -> History:
    kept = History.of_prompt(prompt, 200, torch.device("cpu"))
    for token in answer:
        kept.add(token)
    return kept


def test_repetition_penalty_equals_that_of_transformers() -> None:
    processor = transformers.generation.logits_process.RepetitionPenaltyLogitsProcessor(1.3)
    expected = processor(torch.tensor([[3, 5, 7, 7]]), LOGITS[None].clone())[0]
    config = GenerationConfig(repetition_penalty=1.3)
    torch.testing.assert_close(penalize(LOGITS, history([3, 5], [7, 7]), config, []), expected, rtol=0, atol=0)


def test_frequency_and_presence_count_the_answer() -> None:
    config = GenerationConfig(frequency_penalty=0.5, presence_penalty=0.25)
    expected = LOGITS.clone()
    expected[7] -= 2 * 0.5 + 0.25
    expected[9] -= 0.5 + 0.25
    torch.testing.assert_close(penalize(LOGITS, history([3, 5], [7, 9, 7]), config, []), expected)


@pytest.mark.parametrize("factor", [1.2, 0.8])
def test_length_penalty_equals_that_of_transformers(factor: float) -> None:
    processor = transformers.ExponentialDecayLengthPenalty((2, factor), torch.tensor([4, 6]), 2)
    ids = torch.tensor([[3, 5, 7, 9, 7, 1, 2]])  # 2 of the prompt, 5 of the answer
    expected = processor(ids, LOGITS[None].clone())[0]
    config = GenerationConfig(length_penalty=factor, length_penalty_start=2)
    own = penalize(LOGITS, history([3, 5], [7, 9, 7, 1, 2]), config, [4, 6])
    torch.testing.assert_close(own, expected)
    assert torch.equal(penalize(LOGITS, history([3, 5], [7, 9]), config, [4, 6]), LOGITS)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-50, 1e30])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "typical_p": 0.9, "min_p": 0.1}])
def test_any_temperature_draws(temperature: float, filters: dict[str, Any]) -> None:
    config = GenerationConfig(temperature=temperature, **filters)
    drawn = {draw(LOGITS, config, helpers.seeded(seed)) for seed in range(20)}
    assert drawn == {int(LOGITS.argmax())} if temperature < 1 else len(drawn) > 1


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "min_p": 0.1}])
def test_what_has_no_probability_is_not_drawn_however_hot_it_is(filters: dict[str, Any]) -> None:
    logits = torch.full((200,), -math.inf)
    logits[[3, 5]] = torch.tensor([1.0, 2.0])
    config = GenerationConfig(temperature=1e308, **filters)
    assert {draw(logits, config, helpers.seeded(seed)) for seed in range(20)} == {3, 5}


@pytest.mark.parametrize("factor", [2.0, 0.5, 1e6, 1e-6])
def test_penalties_at_their_limits_stay_finite(factor: float) -> None:
    config = GenerationConfig(
        repetition_penalty=factor,
        frequency_penalty=math.copysign(1e6, factor - 1),
        presence_penalty=1e6,
        length_penalty=factor,
    )
    kept = history([3, 5], [7, 9, 7])
    kept.length = 100_000
    own = penalize(LOGITS, kept, config, [4, 6])
    assert bool(torch.isfinite(own).all())
    assert bool((own[[4, 6]] > LOGITS[[4, 6]]).all()) == (factor > 1)


def test_draws_follow_the_probabilities() -> None:
    config = GenerationConfig(temperature=1.0, top_k=3)
    tokens, p = candidates(LOGITS, config)
    generator = helpers.seeded(0)
    drawn = torch.tensor([draw(LOGITS, config, generator) for _ in range(3000)])
    for token, share in zip(tokens, p, strict=True):
        deviation = math.sqrt(3000 * share * (1 - share))
        assert abs(int((drawn == token).sum()) - 3000 * float(share)) < 4 * deviation


def test_temperature_0_takes_the_likeliest() -> None:
    assert draw(LOGITS, GenerationConfig(), helpers.seeded(0)) == int(LOGITS.argmax())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    logits = torch.stack((LOGITS, LOGITS))
    check_logits(torch.where(logits < 0, -torch.inf, logits), [0, 1], 0)
    logits[1, 7] = bad
    with pytest.raises(FloatingPointError, match=f"prompt 5 hold {bad} after 3 new tokens"):
        check_logits(logits, [2, 5], 3)
    with pytest.raises(FloatingPointError, match="hold -inf"):
        check_logits(torch.full((1, 4), -torch.inf), [0], 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.1},
        {"typical_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e7},
        {"length_penalty": -1.0},
        {"length_penalty": 1e-7},
        {"presence_penalty": -1e7},
        {"frequency_penalty": float("inf")},
        {"seed": "1"},
        {"stop": ("",)},
        {"overflow": "wrap"},
        {"context": 1},
    ],
    ids=str,
)
def test_bad_settings_are_named_with_their_value(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"{name}.*{'' if name == 'stop' else value}"):
        GenerationConfig(**bad)


def test_changed_knows_its_names() -> None:
    assert GenerationConfig().changed(top_k=3).top_k == 3
    with pytest.raises(TypeError, match="has no topk"):
        GenerationConfig().changed(topk=3)


def test_log_probabilities_are_those_of_the_logits_as_they_are() -> None:
    logits = helpers.randn(50, seed=3)
    own, likeliest = log_probabilities(logits, 7, 5)
    exact = logits.double().log_softmax(0)
    assert own == pytest.approx(float(exact[7]), rel=1e-6)
    assert [token for token, _ in likeliest] == exact.argsort(descending=True)[:5].tolist()
    assert [value for _, value in likeliest] == pytest.approx(exact.sort(descending=True)[0][:5].tolist(), rel=1e-6)
    assert len(log_probabilities(logits, 7, 99)[1]) == 50
