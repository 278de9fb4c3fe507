"""Sequences that come and go give the logits that each has alone, bit for bit."""

import pytest
import torch
from torch import Tensor

from bittorch.models.engine import Engine
from tests.models import tiny

MODEL = tiny.model()


def alone(tokens: list[int]) -> Tensor:
    return MODEL(torch.tensor([tokens]))[0, -1]


@torch.inference_mode()
def test_rows_are_reused_and_logits_are_those_of_each_sequence_alone() -> None:
    first, second, third = tiny.prompts(5, 9, 3)
    engine = Engine(MODEL, MODEL.new_cache(2, 32))
    one, two = engine.add(first), engine.add(second)
    logits = engine.step()
    assert torch.equal(logits, torch.stack([alone(first), alone(second)]))
    engine.drop(one)
    three = engine.add(third)
    assert (three.row, two.row) == (0, 1)
    assert engine.running == [three, two]
    two.append(7)
    logits = engine.step()  # one reads its prompt while the other goes on
    assert torch.equal(logits[0], alone(third))
    assert torch.allclose(logits[1], alone([*second, 7]), atol=1e-5)  # attention adds in another order
    assert two.tokens == [*second, 7]
    assert two.pending == []


@torch.inference_mode()
def test_a_sequence_begins_with_what_its_row_holds() -> None:
    (tokens,) = tiny.prompts(8)
    engine = Engine(MODEL, MODEL.new_cache(1, 32))
    engine.add(tokens)
    engine.step()
    engine.drop(engine.running[0])
    again = engine.add([*tokens[:6], 3], held=6)
    assert again.pending == [3]
    assert torch.allclose(engine.step()[0], alone([*tokens[:6], 3]), atol=1e-5)
    engine.restart(again, tokens[:4])
    assert torch.equal(engine.step()[0], alone(tokens[:4]))


def test_refusals() -> None:
    engine = Engine(MODEL, MODEL.new_cache(1, 32))
    with pytest.raises(ValueError, match="of 0 tokens cannot have 0 held"):
        engine.add([])
    with pytest.raises(ValueError, match="of 2 tokens cannot have 2 held"):
        engine.add([1, 2], held=2)
    sequence = engine.add([1, 2])
    with pytest.raises(ValueError, match="all 1 rows"):
        engine.add([1])
    engine.step()
    with pytest.raises(ValueError, match="at least one token"):
        engine.step()
    engine.drop(sequence)
    with pytest.raises(ValueError, match="not in list"):
        engine.drop(sequence)


@torch.inference_mode()
def test_a_prompt_is_read_in_parts_beside_others() -> None:
    long, short = tiny.prompts(20, 4)
    engine = Engine(MODEL, MODEL.new_cache(3, 32))
    first, second = engine.add(long, row=2), engine.add(short)
    assert engine.free == [1]
    assert (first.row, second.row) == (2, 0)
    logits = engine.step({second: 4, first: 8})
    assert torch.equal(logits, torch.stack([alone(short), alone(long[:8])]))
    assert (len(first.pending), second.pending) == (12, [])
    assert torch.allclose(engine.step({first: 12}), alone(long), atol=1e-5)  # attention adds in another order
    with pytest.raises(ValueError, match="row 2 has 0 tokens pending, cannot read 1"):
        engine.step({first: 1})
    with pytest.raises(ValueError, match=r"row 2 is not free; the free rows are \[1\]"):
        engine.add(short, row=2)
