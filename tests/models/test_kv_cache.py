import pytest
import torch

from bittorch.models import KVCache
from tests import helpers
from tests.models import tiny


def cache(rows: int = 2, capacity: int = 6) -> KVCache:
    return KVCache(tiny.CONFIG, rows, capacity, dtype=torch.float32)


def kv(tokens: int, seed: int = 0) -> torch.Tensor:
    return helpers.randn(tokens, 2, 2, 16, seed=seed)


def test_rows_grow_on_their_own() -> None:
    kept = cache()
    first, second, more = kv(3), kv(1, 1), kv(2, 2)
    for row, new in ((0, first), (1, second)):
        held = kept.write(0, row, new)
        torch.testing.assert_close(held, new.permute(1, 2, 0, 3), rtol=0, atol=0)
    kept.advance([0, 1], [3, 1])
    held = kept.write(0, 0, more)
    torch.testing.assert_close(held, torch.cat((first, more)).permute(1, 2, 0, 3), rtol=0, atol=0)
    kept.advance([0], [2])
    assert kept.lengths == [5, 1]


def test_views_of_all_rows_are_those_of_each() -> None:
    together, apart = cache(), cache()
    new = torch.stack((kv(2), kv(2, 1)))
    for layer in range(2):
        written, held = together.views(0, 2)
        written[layer].copy_(new.permute(2, 0, 3, 1, 4))
        for row in range(2):
            expected = apart.write(layer, row, new[row])
            torch.testing.assert_close(held[layer][:, row], expected, rtol=0, atol=0)
    assert together.views(2, 3)[1][1].shape == (2, 2, 2, 3, 16)


def test_truncated_tokens_are_written_over() -> None:
    kept = cache()
    kept.write(0, 0, kv(4))
    kept.advance([0], [4])
    kept.truncate(0, 1)
    held = kept.write(0, 0, kv(1, 3))
    torch.testing.assert_close(held[:, :, 0], kv(4).permute(1, 2, 0, 3)[:, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(held[:, :, 1], kv(1, 3).permute(1, 2, 0, 3)[:, :, 0], rtol=0, atol=0)


def test_errors_have_both_values() -> None:
    kept = cache()
    with pytest.raises(ValueError, match="row 1 of the cache holds 0 of 6 tokens, no room for 7"):
        kept.check_room([1], [7])
    with pytest.raises(ValueError, match="2 rows, got tokens for row 2"):
        kept.check_room([2], [1])
    with pytest.raises(ValueError, match="holds 0 tokens and cannot be cut to 1"):
        kept.truncate(0, 1)
    with pytest.raises(ValueError, match="rows=0, capacity=6"):
        cache(rows=0)


def test_bytes() -> None:
    assert cache().nbytes == 2 * 2 * 2 * 2 * 6 * 16 * 4  # layers, k and v, rows, heads, capacity, head_dim, bytes
