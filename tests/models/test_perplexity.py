import math

import pytest
import torch

from bittorch.models.perplexity import perplexity, windows
from tests.models import tiny
from tests.models.vocabularies import byte_tokenizer

IDS = tiny.prompts(100)[0]


def expected(model: torch.nn.Module, window: int, stride: int) -> tuple[float, int]:
    """The loop of transformers' page, a token at a time and in float64."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(IDS), stride):
        end = min(begin + window, len(IDS))
        with torch.inference_mode():
            log_p = model(torch.tensor([IDS[begin:end]]))[0].double().log_softmax(-1)
        for position in range(max(previous, begin + 1), end):
            total -= float(log_p[position - begin - 1, IDS[position]])
            count += 1
        previous = end
        if end == len(IDS):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(("window", "stride"), [(100, 100), (128, 1), (32, 32), (32, 16), (30, 7), (2, 1), (50, 50)])
def test_values_equal_the_formula(window: int, stride: int) -> None:
    model = tiny.model(activation_bits=None)  # int8 steps would turn the rounding of attention into a visible one
    value, count = expected(model, window, stride)
    measured = perplexity(model, IDS, window=window, stride=stride)
    assert measured.tokens == count
    assert measured.value == pytest.approx(value, rel=1e-5)
    assert measured.value == pytest.approx(math.exp(measured.nll / count))


@pytest.mark.parametrize(("count", "window", "stride"), [(10, 4, 2), (11, 4, 3), (5, 8, 2), (9, 3, 1)])
def test_windows_score_each_token_once(count: int, window: int, stride: int) -> None:
    scored = [t for begin, end, first in windows(count, window, stride) for t in range(first, end)]
    assert scored == list(range(1, count))
    for begin, _, first in windows(count, window, stride):
        assert begin == 0 or first - begin >= window - stride


def test_text_defaults_and_progress() -> None:
    model = tiny.model()
    model.tokenizer = byte_tokenizer()
    text = "some words of text" * 20
    calls: list[tuple[int, int, float]] = []
    measured = perplexity(model, text, max_tokens=200, progress=lambda *call: calls.append(call))
    assert (measured.window, measured.stride, measured.tokens) == (128, 64, 199)
    assert calls[-1] == (199, 199, measured.value)
    ids = model.tokenizer.encode(text)[:200]
    assert measured.value == perplexity(model, ids, window=128, stride=64).value


def test_a_uniform_model_hesitates_between_all_tokens() -> None:
    model = tiny.model(ternary=False)
    model.norm.weight.zero_()
    assert perplexity(model, IDS).value == pytest.approx(300, rel=1e-6)


def test_a_model_that_is_far_off_is_infinitely_perplexed() -> None:
    model = tiny.model(ternary=False)
    model.norm.weight.mul_(1e6)
    measured = perplexity(model, IDS, progress=lambda *call: None)
    assert measured.value == math.inf
    assert math.isfinite(measured.nll)


def test_bad_input() -> None:
    model = tiny.model()
    with pytest.raises(ValueError, match="window must be from 2 to the context of 128 tokens, got 129"):
        perplexity(model, IDS, window=129)
    with pytest.raises(ValueError, match="stride must be from 1 to window=16, got 17"):
        perplexity(model, IDS, window=16, stride=17)
    with pytest.raises(ValueError, match="at least two tokens, got 1"):
        perplexity(model, [5])
    with pytest.raises(ValueError, match="no tokenizer"):
        perplexity(model, "text")
    model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        perplexity(model, IDS)
