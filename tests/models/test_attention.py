import pytest
import torch

from bittorch.models.attention import attend, causal_mask, decodes
from tests import helpers
from tests.models import tiny


def reference(q: torch.Tensor, kv: torch.Tensor, window: int = 0) -> torch.Tensor:
    """One query at a time, in float64."""
    q, (k, v) = q.double(), kv.double().unbind()
    rows, count, heads, width = q.shape
    out = torch.empty(rows, count, heads * width, dtype=torch.float64)
    for row in range(rows):
        for token in range(count):
            last = k.shape[2] - count + token + 1
            seen = slice(max(0, last - window - 1) if window else 0, last)
            for head in range(heads):
                group = head // (heads // k.shape[1])
                p = (k[row, group, seen] @ q[row, token, head] / width**0.5).softmax(0)
                out[row, token, head * width : (head + 1) * width] = p @ v[row, group, seen]
    return out


@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@helpers.each(("rows", "count", "length"), [(1, 1, 1), (2, 1, 9), (1, 7, 7), (2, 5, 5), (2, 3, 8)])
@helpers.each(("heads", "kv_heads"), [(4, 2), (4, 4), (3, 1)])
def test_attend(rows: int, count: int, length: int, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    q = helpers.randn(rows, count, heads, 16, dtype=dtype)
    kv = helpers.randn(2, rows, kv_heads, length + 3, 16, seed=1, dtype=dtype)[:, :, :, :length]
    helpers.assert_near(attend(q, kv), reference(q, kv), {torch.float32: 1e-5}.get(dtype, 3 * helpers.TOLERANCE[dtype]))


@pytest.mark.parametrize(("count", "length"), [(1, 9), (1, 4), (1, 3), (7, 7), (5, 5), (3, 8), (3, 4), (2, 6)])
def test_a_window(count: int, length: int) -> None:
    """Of 3 tokens before each, with and without keys that no query sees."""
    q, kv = helpers.randn(2, count, 4, 16), helpers.randn(2, 2, 2, length, 16, seed=1)
    helpers.assert_near(attend(q, kv, 3), reference(q, kv, 3), 1e-5)


def test_rows_do_not_depend_on_each_other() -> None:
    q, kv = helpers.randn(5, 1, 4, 16), helpers.randn(2, 5, 2, 40, 16, seed=1)
    together = attend(q, kv)
    for row in range(5):
        helpers.assert_same_bits(attend(q[row : row + 1], kv[:, row : row + 1])[0], together[row])


def test_causal_mask_sees_the_past() -> None:
    assert causal_mask(2, 4, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]


@pytest.mark.parametrize("kv_dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_cache_of_halves_holds_what_is_attended_to(kv_dtype: torch.dtype | None) -> None:
    """Prompts of several lengths, long ones by torch, then steps of one token and of some."""
    model = tiny.model(activation_bits=None)
    model.kv_dtype = kv_dtype
    cache = model.new_cache(3, 64)
    model.kv_dtype = torch.float32
    exact = model.new_cache(3, 64)
    assert cache.data.dtype == (kv_dtype or torch.float32)
    for tokens, counts in (
        (range(33), [20, 4, 9]),
        (range(3), [1, 1, 1]),
        (range(12), [8, 3, 1]),
        (range(30), [9, 20, 1]),
    ):
        ids = torch.tensor(list(tokens)) + 5
        got, expected = model.step(ids, counts, cache), model.step(ids, counts, exact)
        helpers.assert_near(got, expected.double(), 1e-5 if kv_dtype is None else 0.03)
    assert cache.lengths == [38, 28, 12]


def test_short_sequences_have_their_own_bits_beside_long_ones() -> None:
    model = tiny.model()
    ids = torch.arange(15) + 5
    cache, own = model.new_cache(3, 32), model.new_cache(1, 32)
    for row, part in ((1, ids[12:]), (2, ids[:3])):  # it begins, then goes on, beside one that begins
        together = model.step(torch.cat((ids[:12], part)), [12, 3], cache, rows=[row, 0], last_only=True)
        alone = model.step(part, [3], own, last_only=True)
        helpers.assert_same_bits(together[1:], alone)


def test_gradients_go_through_torch() -> None:
    q, kv = helpers.randn(1, 2, 2, 16).requires_grad_(), helpers.randn(2, 1, 1, 2, 16)
    assert not decodes(q[0], 2, 1)
    with torch.no_grad():
        assert decodes(q[0], 8, 1)
        assert not decodes(q[0], 9, 1)
        assert not decodes(q[0], 8, 0)
    attend(q, kv).sum().backward()
    assert q.grad is not None
