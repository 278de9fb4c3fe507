"""The gated delta rule against float64, and states of sequences in a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bittorch.models import LanguageModel, PrefixCache
from bittorch.models.delta_net import delta_rule
from bittorch.models.engine import Engine
from tests import helpers
from tests.models import tiny

CONFIG = tiny.changed(
    architecture="qwen3_5",
    hidden_act="silu",
    tie_embeddings=False,
    activation_bits=None,
    rotary_dim=8,
    norms_from_one=True,
    num_layers=3,
    layer_types=("linear_attention", "full_attention", "linear_attention"),
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=16,
    delta_value_dim=8,
    delta_kernel=4,
)


def hybrid() -> LanguageModel:
    """States that forget slowly."""
    tensors = tiny.tensors(CONFIG, ternary=False)
    slow = {name: value * 3 - 6 for name, value in tensors.items() if name.endswith("A_log")}
    return LanguageModel.from_checkpoint(tiny.checkpoint(CONFIG, {**tensors, **slow}), tokenizer=False)


MODEL = hybrid()
IDS = torch.tensor(tiny.prompts(24, 24))


def reference(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Head by head and token by token, in float64."""
    q, k, v, decay, beta, state = (t.double().clone() for t in (q, k, v, decay, beta, state))
    out = torch.empty_like(v)
    for row in range(v.shape[0]):
        for head in range(v.shape[2]):
            s = state[row, head]
            for token in range(v.shape[1]):
                at = row, token, head
                s *= decay[at].exp()
                s += torch.outer(k[at], beta[at] * (v[at] - s.T @ k[at]))
                out[at] = s.T @ q[at]
    return out, state


def inputs(rows: int, tokens: int, seed: int = 0) -> list[Tensor]:
    """Keys and queries of length 1, as they come; decays from almost none to almost all."""
    heads, keys, values = 3, 8, 5
    q, k = (
        torch.nn.functional.normalize(helpers.randn(rows, tokens, heads, keys, seed=seed + i), dim=-1) for i in (0, 1)
    )
    v, state = (
        helpers.randn(rows, tokens, heads, values, seed=seed + 2),
        helpers.randn(rows, heads, keys, values, seed=9),
    )
    decay = -(helpers.randn(rows, tokens, heads, seed=seed + 3) * 2).exp()
    return [q, k, v, decay, helpers.randn(rows, tokens, heads, seed=seed + 4).sigmoid(), state]


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 65, 130])
def test_the_rule(tokens: int) -> None:
    given = inputs(2, tokens)
    expected, after = reference(*given)
    state = given[5].clone()
    found = delta_rule(*given[:5], state)
    assert helpers.relative_l2(found, expected) < 1e-6
    assert helpers.relative_l2(state, after) < 1e-6


def test_states_of_sequences_that_come_and_go() -> None:
    """Of different lengths, in rows of others, in parts: each goes on as it would alone."""
    model = MODEL
    first, second, third = IDS[0, :9].tolist(), IDS[1, :5].tolist(), IDS[1, 5:18].tolist()

    def alone(tokens: list[int]) -> Tensor:
        return model(torch.tensor([tokens]))[0, -1]

    def near(found: Tensor, tokens: list[int]) -> bool:
        return torch.allclose(found, alone(tokens), atol=1e-4)

    with torch.inference_mode():
        engine = Engine(model, model.new_cache(2, 32))
        one, two = engine.add(first), engine.add(second)
        logits = engine.step()
        assert near(logits[0], first)
        assert near(logits[1], second)
        engine.drop(one)
        three = engine.add(third)
        two.append(7)
        logits = engine.step()
        assert near(logits[0], third)
        assert near(logits[1], [*second, 7])
        for sequence in (two, three):
            sequence.append(5)
        logits = engine.step()  # both rows, of different lengths, a token each
        assert near(logits[0], [*third, 5])
        assert near(logits[1], [*second, 7, 5])
        engine.restart(three, first)
        two.append(8)
        assert near(engine.step()[0], first)


def test_tokens_in_parts_are_tokens_at_once() -> None:
    model = MODEL
    cache, ids = model.new_cache(2, 32), IDS[:, :20]
    parts = torch.cat([model(part, cache) for part in ids.split([1, 7, 1, 2, 9], 1)], 1)
    assert float((parts - model(ids)).abs().max()) < 1e-4


def test_a_conversation_keeps_a_state_or_reads_again() -> None:
    model = MODEL
    prefix, first = PrefixCache(model.new_cache(1, 64)), IDS[0, :10].tolist()
    answer = greedy(model, first, prefix=prefix)
    turn = [*first, *answer[:-1], 3, 4]
    assert prefix.reuse(turn) == len(turn) - 2  # all that it has
    assert greedy(model, turn, prefix=prefix) == greedy(model, turn)
    other = [*turn[:8], 9, 9]
    generation = model.stream([other], max_new_tokens=8, temperature=0.0, prefix=prefix).run()
    assert generation.stats.kept_tokens == 0  # a state has no beginnings
    assert generation.tokens[0] == greedy(model, other)


def test_a_conversation_goes_on_after_a_step_that_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does it: the next turn reads all tokens again."""
    prefix, first = PrefixCache(MODEL.new_cache(1, 64)), IDS[0, :10].tolist()
    answer = greedy(MODEL, first, prefix=prefix)
    turn = [*first, *answer[:-1], 3, 4]
    with monkeypatch.context() as broken:
        broken.setattr(type(MODEL.layers[2].mlp), "forward", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            greedy(MODEL, turn, prefix=prefix)
    generation = MODEL.stream([turn], max_new_tokens=8, temperature=0.0, prefix=prefix).run()
    assert generation.stats.kept_tokens == 0
    assert generation.tokens[0] == greedy(MODEL, turn)


def greedy(model: LanguageModel, prompt: list[int], **options: Any) -> list[int]:
    return model.stream([prompt], max_new_tokens=8, temperature=0.0, **options).run().tokens[0]


def test_a_cache_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODEL
    cache, ids = model.new_cache(1, 32), IDS[:1, :6]
    expected = model(ids, cache)
    with pytest.raises(ValueError, match=r"row 0 holds 6 tokens, and .* DeltaNet .* cannot be cut to 4"):
        cache.truncate(0, 4)
    engine = Engine(model, cache)
    with pytest.raises(ValueError, match="cannot be cut to 2"):
        engine.add([1, 2, 3], held=2)
    with monkeypatch.context() as broken:
        broken.setattr(type(model.layers[2].mlp), "forward", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids[:, :1], cache)
    with pytest.raises(ValueError, match=r"a step on row 0 of the cache was broken off.*cut the row to 0"):
        model(ids[:, :1], cache)
    cache.truncate(0, 0)
    assert torch.equal(model(ids, cache), expected)
    assert cache.nbytes > cache.data.nbytes == 2 * 2 * 32 * 16 * 4  # keys and values of one layer alone
