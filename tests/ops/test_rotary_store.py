import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.rope import Rotation
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("rotary_store")


def rotation(positions: list[int], half: int, dtype: torch.dtype) -> Rotation:
    return Rotation(10000.0 ** -(torch.arange(half) / half), torch.tensor(positions), dtype)


def angles(of: Rotation) -> tuple[Tensor, Tensor]:
    return of.cos.flatten(1), of.sin.flatten(1)


@pytest.mark.parametrize("kv_dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
@pytest.mark.parametrize("rotated", [0, 6, 16])
def test_heads_and_cache_are_those_of_torch(rotated: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    lengths, rows, counts, positions = [5, 9], [2, 0], [2, 3], [3, 4, 6, 7, 8]
    heads, kv = helpers.randn(5, 7, 16, dtype=dtype), helpers.randn(2, 3, 2, 9, 16, seed=1, dtype=kv_dtype)
    expected, cache = heads.clone(), kv.clone()
    turns = rotation(positions, rotated // 2, dtype)
    if rotated:
        turns.rotate_(expected[:, :5, :rotated].unflatten(2, (2, -1)))
    token = 0
    for length, row, count in zip(lengths, rows, counts, strict=True):
        cache[:, row, :, length - count : length] = (
            expected[token : token + count, 3:].unflatten(1, (2, 2)).permute(1, 2, 0, 3).to(kv_dtype)
        )
        token += count
    wide, wide_kv = heads.clone(), kv.clone()
    cos, sin = angles(turns) if rotated else (None, None)
    ops.rotary_store(heads, kv, cos, sin, lengths, rows, counts)
    helpers.assert_same_bits(heads, expected)
    helpers.assert_same_bits(kv, cache)
    reference.rotary_store(wide, wide_kv, cos, sin, lengths, rows, counts)
    helpers.assert_near(wide, heads)
    helpers.assert_near(wide_kv, kv, max(helpers.TOLERANCE[dtype], helpers.TOLERANCE[kv_dtype]))


def test_threads_and_wide_strides() -> None:
    memory = helpers.randn(300, 2 * 9, 64)
    heads, kv = memory[:, :9], torch.zeros(2, 1, 2, 300, 64)
    cos, sin = angles(rotation(list(range(300)), 32, torch.float32))
    found = []
    for count in (1, 3):
        own, cache = memory.clone()[:, :9], kv.clone()
        with helpers.threads(count):
            ops.rotary_store(own, cache, cos, sin, [300], None, [300])
        found.append((own, cache))
    for one, three in zip(*found, strict=True):
        helpers.assert_same_bits(one, three)
    assert not torch.equal(found[0][0], heads)


BAD = {
    r"heads must be \(tokens": lambda h, kv, a: (h[0], kv, a, a, [4, 4]),
    "those of q before the 2 of k and of v, got 4": lambda h, kv, a: (h[:, :4], kv, a, a, [4, 4]),
    "heads of a token must lie side by side": lambda h, kv, a: (h.mT.contiguous().mT, kv, a, a, [4, 4]),
    "columns of kv must lie": lambda h, kv, a: (h, kv.mT.contiguous().mT, a, a, [4, 4]),
    r"cos must be \(2, an even number up to 16\), got \[2, 3\]": lambda h, kv, a: (h, kv, a[:, :3], a[:, :3], [4, 4]),
    r"sin must be \(2, an even number up to 16\), got \[1, 16\]": lambda h, kv, a: (h, kv, a, a[:1], [4, 4]),
    "one shape, or be None both": lambda h, kv, a: (h, kv, a, None, [4, 4]),
    "cos and sin must have one shape": lambda h, kv, a: (h, kv, a, a[:, :4], [4, 4]),
    "there are 2 tokens, and counts add up to 1": lambda h, kv, a: (h, kv, a, a, [4]),
    "capacity of 9, got 10": lambda h, kv, a: (h, kv, a, a, [4, 10]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_writes_nothing(message: str) -> None:
    heads, kv, cos = helpers.randn(2, 7, 16), torch.zeros(2, 3, 2, 9, 16), torch.ones(2, 16)
    before = heads.clone()
    with pytest.raises(ValueError, match=message):
        ops.rotary_store(*BAD[message](heads, kv, cos))
    helpers.assert_same_bits(heads, before)
    assert not kv.any()


def test_types_gradients_and_nothing() -> None:
    heads, kv, cos = helpers.randn(1, 3, 16), torch.zeros(2, 1, 1, 4, 16), torch.ones(1, 16)
    with pytest.raises(TypeError, match="cos must be of the type of heads"):
        ops.rotary_store(heads, kv, cos.half(), cos.half(), [1])
    for given in ((heads.clone().requires_grad_(), kv, cos), (heads, kv, cos.clone().requires_grad_())):
        with pytest.raises(NotImplementedError, match="no gradient"):
            ops.rotary_store(*given, cos, [1])
    version = heads._version
    ops.rotary_store(heads, kv, cos, cos, [1])
    assert heads._version > version  # autograd knows that it was written to
    ops.rotary_store(heads[:0], kv, None, None, [0], None, [0])
    torch.ops.bittorch.rotary_store(heads.to("meta"), kv.to("meta"), None, None, [1])


def test_memory_that_two_tokens_would_write_is_refused() -> None:
    heads, kv = helpers.randn(2, 3, 16), torch.zeros(2, 2, 1, 4, 16)
    with pytest.raises(RuntimeError, match="single memory location"):
        ops.rotary_store(heads, kv[:, :1].expand(2, 2, 1, 4, 16), None, None, [1, 1])
    with pytest.raises(RuntimeError, match="input tensor and the written-to tensor"):
        ops.rotary_store(kv[0, 0, 0, :3].unsqueeze(0), kv, None, None, [1])
    with pytest.raises(ValueError, match=r"rows must name a row of kv once, got \[1, 1\]"):
        ops.rotary_store(heads, kv, None, None, [3, 3], [1, 1])
    assert not kv.any()
