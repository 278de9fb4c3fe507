import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("ternary_embedding")


def _exact(indices: Tensor, codes: Tensor, scale: Tensor, depth: int = 1) -> Tensor:
    """The definition in float64, where products with codes and sums of a few planes are exact."""
    return helpers.dense(codes, scale).unflatten(0, (depth, -1)).sum(0)[indices.long()]


def _table(n: int, k: int, granularity: helpers.Granularity = helpers.CHANNEL) -> tuple[Tensor, Tensor, Tensor]:
    codes = helpers.random_codes(n, k)
    return codes, helpers.pack(codes), helpers.random_scale(granularity, n, k)


@helpers.each("k", helpers.EDGE_SIZES)
@helpers.each("m", [0, 1, 5])
def test_embedding_equals_the_definition_at_edge_sizes(m: int, k: int) -> None:
    codes, packed, scale = _table(6, k)
    indices = torch.tensor([5, 0, 3, 3, 1])[:m]
    for run in (ops.ternary_embedding, reference.ternary_embedding):
        helpers.assert_same_bits(run(indices, packed, scale, k, torch.float32), _exact(indices, codes, scale).float())


@helpers.each("depth", [1, 2, 3])
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_embedding_is_one_sum_and_one_cast(granularity: helpers.Granularity, dtype: torch.dtype, depth: int) -> None:
    codes, packed, scale = _table(6, 320, granularity)
    indices = torch.tensor([[1, 0], [1, 1]])
    y = ops.ternary_embedding(indices, packed, scale, 320, dtype, depth)
    assert y.shape == (2, 2, 320)
    helpers.assert_same_bits(y, _exact(indices, codes, scale, depth).float().to(dtype))
    helpers.assert_same_bits(reference.ternary_embedding(indices, packed, scale, 320, dtype, depth), y)


def test_embedding_of_planes_is_rounded_once() -> None:
    # In float32 the sum of these would lose the last plane twice: 1 + 2^-24 + 2^-24.
    scale = torch.tensor([2.0**-24, 2.0**-24, 1.0])
    y = ops.ternary_embedding(
        torch.tensor([0]), helpers.pack(torch.ones(3, 1).to(torch.int8)), scale, 1, torch.float32, 3
    )
    assert y.item() == 1 + 2**-23


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_embedding_of_layout_equals_contiguous(layout: str) -> None:
    codes, packed, scale = _table(6, 64, helpers.Granularity("group", 16))
    rearranged, indices = helpers.LAYOUTS[layout], torch.tensor([[1, 5, 2], [4, 0, 0]])
    y = ops.ternary_embedding(rearranged(indices), rearranged(packed), rearranged(scale), 64, torch.float32)
    assert torch.equal(y, _exact(indices, codes, scale).float())


def test_embedding_takes_int32_a_scalar_and_expanded_indices() -> None:
    codes, packed, scale = _table(4, 9)
    for indices in (torch.tensor([2, 3], dtype=torch.int32), torch.tensor(3), torch.tensor([1]).expand(2, 5)):
        y = ops.ternary_embedding(indices, packed, scale, 9, torch.float32)
        assert torch.equal(y, _exact(indices, codes, scale).float())


def test_embedding_with_two_threads_equals_one() -> None:
    _, packed, scale = _table(50, 1024)
    indices = torch.randint(50, (600,), generator=helpers.seeded(0))
    results = []
    for count in (1, 2):
        with helpers.threads(count):
            results.append(ops.ternary_embedding(indices, packed, scale, 1024, torch.float32))
    assert torch.equal(*results)


def test_embedding_of_a_mapped_index_is_one_batch() -> None:
    codes, packed, scale = _table(4, 9)
    indices = torch.tensor([[0, 3], [1, 1], [2, 0]])
    y = torch.vmap(lambda i: ops.ternary_embedding(i, packed, scale, 9, torch.float32), in_dims=1)(indices)
    assert torch.equal(y, _exact(indices.t(), codes, scale).float())


@pytest.mark.parametrize("index", [-1, 3, 6, 2**40])
def test_embedding_names_an_index_out_of_range(index: int) -> None:
    _, packed, scale = _table(6, 9)
    with pytest.raises(IndexError, match=rf"indices must be from 0 to 2, for 3 rows, got {index} at position 4"):
        ops.ternary_embedding(torch.tensor([[0, 1, 2], [0, index, 0]]), packed, scale, 9, torch.float32, 2)


def test_embedding_of_an_empty_table_has_no_index() -> None:
    empty = torch.zeros(0, 3, dtype=torch.uint8)
    assert ops.ternary_embedding(torch.zeros(0, 2).long(), empty, torch.ones(1), 9, torch.float32).shape == (0, 2, 9)
    with pytest.raises(IndexError, match="for 0 rows, got 0"):
        ops.ternary_embedding(torch.tensor([0]), empty, torch.ones(1), 9, torch.float32)


@helpers.once
@helpers.each(
    ("change", "error", "message"),
    [
        ({"indices": torch.tensor([0.0])}, TypeError, "indices must be int64 or int32, got float32"),
        ({"w_packed": torch.zeros(6, 3)}, TypeError, "w_packed must be uint8, got float32"),
        ({"in_features": 13}, ValueError, r"must be \(out_features, 4\) uint8 for in_features=13, got \[6, 3\]"),
        ({"scale": torch.ones(5)}, ValueError, r"out_features=6, got \[5\]"),
        ({"scale": torch.ones(6).half()}, TypeError, "scale must be float32, got"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float32, float16 or bfloat16, got int8"),
        ({"depth": 0}, ValueError, "depth must be the number of planes in w_packed, which has 6 rows, got 0"),
        ({"depth": 4}, ValueError, "which has 6 rows, got 4"),
        ({"scale": torch.ones(6, device="meta")}, RuntimeError, "but scale is on meta"),
    ],
    ids=["indices", "w_packed", "in_features", "scale", "half scale", "dtype", "depth 0", "depth 4", "device"],
)
def test_embedding_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    _, packed, scale = _table(6, 9)
    good = {"indices": torch.tensor([0]), "w_packed": packed, "scale": scale, "in_features": 9, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        ops.ternary_embedding(**{**good, **change})


@helpers.once
@pytest.mark.parametrize("depth", [1, 2])
def test_embedding_passes_opcheck(depth: int) -> None:
    _, packed, scale = _table(6, 9)
    operands = torch.tensor([[0, 2], [1, 1]]), packed, scale, 9, torch.float32, depth
    torch.library.opcheck(torch.ops.bittorch.ternary_embedding.default, operands)
