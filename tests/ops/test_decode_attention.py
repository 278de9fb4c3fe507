import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

OP = "decode_attention"
_kernel = helpers.each_kernel(OP)


def cache(rows: int, kv_heads: int, capacity: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return helpers.randn(2, rows, kv_heads, capacity, dim, seed=3, dtype=dtype)


def by_softmax(q: Tensor, kv: Tensor, length: int, window: int = 0, scale: float | None = None) -> Tensor:
    """Torch's attention in float64 with a mask, for one sequence in row 0."""
    k, v = kv[:, 0, :, :length].double()
    group = q.shape[1] // kv.shape[2]
    mask = torch.ones(len(q), length, dtype=torch.bool).tril(length - len(q))
    mask = mask.triu(length - len(q) - window) if window else mask
    heads = (t.repeat_interleave(group, 0) for t in (k, v))
    return F.scaled_dot_product_attention(q.double().transpose(0, 1), *heads, attn_mask=mask, scale=scale).transpose(
        0, 1
    )


@pytest.mark.parametrize("kv_dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_attention_is_that_of_torch(dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    kv = cache(1, 2, 700, 64, kv_dtype)
    for count, window, scale in ((1, 0, None), (8, 0, 0.3), (3, 5, None), (2, 400, None)):
        q = helpers.randn(count, 6, 64, dtype=dtype)
        y = ops.decode_attention(q, kv, [600], None, [count], window, scale)
        assert (y.dtype, y.shape) == (dtype, q.shape)
        helpers.assert_near(y, by_softmax(q, kv, 600, window, scale))
        helpers.assert_near(reference.decode_attention(q, kv, [600], None, [count], window, scale), y)


def test_a_token_has_the_same_bits_in_any_company() -> None:
    kv = cache(4, 1, 600, 32, torch.bfloat16)
    lengths, rows, counts = [513, 7, 300], [2, 0, 3], [5, 1, 2]
    q = helpers.randn(8, 3, 32)
    together = ops.decode_attention(q, kv, lengths, rows, counts)
    alone, token = [], 0
    for length, row, count in zip(lengths, rows, counts, strict=True):
        for i in range(count):
            alone.append(ops.decode_attention(q[token : token + 1], kv, [length - count + i + 1], [row]))
            token += 1
    helpers.assert_same_bits(together, torch.cat(alone))
    moved = torch.full((2, 4, 1, 900, 32), torch.nan, dtype=kv.dtype)
    moved[:, :, :, :600] = kv
    helpers.assert_same_bits(ops.decode_attention(q, moved, lengths, rows, counts), together)


def test_every_kernel_and_thread_count_gives_the_same_bits() -> None:
    kv, q = cache(2, 2, 3000, 48, torch.float16), helpers.randn(2, 8, 48)
    with helpers.forced(OP, "scalar"):
        expected = ops.decode_attention(q, kv, [3000, 2600])
    for count in (1, 3):
        with helpers.threads(count):
            helpers.assert_same_bits(ops.decode_attention(q, kv, [3000, 2600]), expected)


def test_what_no_token_sees_is_not_read() -> None:
    kv, q = cache(1, 1, 20, 16), helpers.randn(2, 2, 16)
    expected = ops.decode_attention(q, kv, [12], None, [2], 4)
    kv[:, :, :, :6], kv[:, :, :, 12:] = torch.nan, torch.inf
    helpers.assert_same_bits(ops.decode_attention(q, kv, [12], None, [2], 4), expected)
    kv[0, 0, 0, 11] = torch.nan  # the second token's own
    y = ops.decode_attention(q, kv, [12], None, [2], 4)
    helpers.assert_same_bits(y[0], expected[0])
    assert bool(y[1].isnan().all())


def test_infinities_and_nan_spread_as_in_a_softmax() -> None:
    kv, q = cache(1, 1, 600, 16).abs(), helpers.randn(1, 1, 16).abs()
    for slot in (3, 599):  # in the first split, and in the last
        for value, place in ((torch.inf, 0), (torch.nan, 0), (torch.inf, 1), (torch.nan, 1), (-torch.inf, 0)):
            spoiled = kv.clone()
            spoiled[place, 0, 0, slot, 5] = value
            y, expected = ops.decode_attention(q, spoiled, [600]), by_softmax(q, spoiled, 600)
            assert torch.equal(y.isfinite(), expected.isfinite())
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    kv[0] = -torch.inf
    assert bool((ops.decode_attention(q, kv, [600]) == 0).all())


def test_scores_far_apart() -> None:
    kv, q = cache(1, 1, 300, 16), 1e3 * helpers.randn(1, 1, 16)
    helpers.assert_near(ops.decode_attention(q, kv, [300]), by_softmax(q, kv, 300))
    assert bool(ops.decode_attention(1e30 * q, kv, [300]).isfinite().all())


def test_views_and_nothing() -> None:
    heads, kv = helpers.randn(3, 8, 32), cache(3, 2, 40, 32)
    q = heads[:, :4]
    whole = ops.decode_attention(q.clone(), kv[:, :2, :, 5:25].clone(), [9, 20], counts=[1, 2])
    helpers.assert_same_bits(ops.decode_attention(q, kv[:, :2, :, 5:25], [9, 20], counts=[1, 2]), whole)
    turned = kv.transpose(3, 4).contiguous().transpose(3, 4)
    helpers.assert_same_bits(ops.decode_attention(q, turned[:, :2, :, 5:25], [9, 20], counts=[1, 2]), whole)
    assert ops.decode_attention(q[:0], kv, []).shape == (0, 4, 32)
    assert ops.decode_attention(q[:0], kv[:, :, :, :0], [0, 0], counts=[0, 0]).shape == (0, 4, 32)
    assert ops.decode_attention(q[:1], kv, [0, 3], counts=[0, 1]).shape == (1, 4, 32)
    assert torch.ops.bittorch.decode_attention(q.to("meta"), kv.to("meta"), [1, 1, 1]).shape == (3, 4, 32)


BAD = {
    r"q must be \(tokens": lambda q, kv: (q[0], kv, [1]),
    r"kv must be \(2": lambda q, kv: (q, kv[:1], [1, 1]),
    "one head_dim from 1 to 512, got 32 and 16": lambda q, kv: (q, kv[..., :16], [1, 1]),
    "multiple of those of kv, got 3 and 2": lambda q, kv: (q[:, :3], kv, [1, 1]),
    "the length of row 1 must be from its 1 new tokens to the capacity of 40, got 41": lambda q, kv: ((q, kv, [1, 41])),
    "got 0": lambda q, kv: (q, kv, [1, 0]),
    "3 rows, got row 3": lambda q, kv: (q, kv, [1, 1], [0, 3]),
    "got row -1": lambda q, kv: (q, kv, [1, 1], [0, -1]),
    "rows must name one for each of 2 lengths, got 1": lambda q, kv: (q, kv, [1, 1], [0]),
    "counts must have one": lambda q, kv: (q, kv, [1, 1], None, [1]),
    "up to 8 new tokens, got 9": lambda q, kv: (q, kv, [9, 1], None, [9, 1]),
    "got -1": lambda q, kv: (q, kv, [9, 1], None, [3, -1]),
    "there are 2 tokens, and counts add up to 3": lambda q, kv: (q, kv, [3, 3], None, [2, 1]),
    "window must not be negative": lambda q, kv: (q, kv, [1, 1], None, None, -1),
    "scale must be finite, got nan": lambda q, kv: (q, kv, [1, 1], None, None, 0, math.nan),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.decode_attention(*BAD[message](helpers.randn(2, 4, 32), cache(3, 2, 40, 32)))


def test_refusals_of_types_and_gradients() -> None:
    q, kv = helpers.randn(1, 2, 16), cache(1, 1, 4, 16)
    for arguments in ((q.double(), kv), (q, kv.to(torch.int8))):
        with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
            ops.decode_attention(*arguments, [1])
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.decode_attention(q.requires_grad_(), kv, [1])
    with torch.no_grad():
        ops.decode_attention(q, kv, [1])
    with pytest.raises(RuntimeError, match="meta"):
        torch.ops.bittorch.decode_attention(q.detach().to("meta"), kv, [1])


def test_it_compiles() -> None:
    q, kv = helpers.randn(2, 2, 16), cache(2, 1, 4, 16)
    opt = torch.compile(lambda *a: ops.decode_attention(*a) + 1, fullgraph=True, backend="aot_eager")
    helpers.assert_same_bits(opt(q, kv, [2, 4]), ops.decode_attention(q, kv, [2, 4]) + 1)
