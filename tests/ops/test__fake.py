"""What a meta tensor is refused for, in the words of the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bittorch import ops

_To = Callable[[Tensor], Tensor]


def _bytes(rows: int, columns: int, to: _To) -> Tensor:
    return to(torch.zeros(rows, columns, dtype=torch.uint8))


def _depth(to: _To, depth: int) -> Tensor:
    return ops.trit_depth_linear(to(torch.ones(1, 8)), _bytes(8, 2, to), to(torch.ones(1)), depth=depth)


REFUSED: dict[str, tuple[Callable[[_To], object], type[Exception]]] = {
    r"a must be \(rows, 2\) uint8 for columns=8": (
        lambda to: ops.bitplane_matmul(_bytes(2, 3, to), _bytes(2, 3, to), 8),
        ValueError,
    ),
    r"b must be \(rows, 2\) uint8 for columns=8, got \[2, 3\]": (
        lambda to: ops.bitplane_matmul(_bytes(2, 2, to), _bytes(2, 3, to), 8),
        ValueError,
    ),
    r"w_packed must be \(rows, 2\) uint8 for columns=8, got \[2, 3\]": (
        lambda to: ops.bitplane_pack(_bytes(2, 3, to), 8),
        ValueError,
    ),
    r"b must be \(rows, 128\) uint8 planes": (
        lambda to: ops.bitplane_matmul(_bytes(2, 2, to), _bytes(2, 2, to), 8, "planes"),
        ValueError,
    ),
    "layout must be 'rows' or 'planes'": (
        lambda to: ops.bitplane_matmul(_bytes(2, 2, to), _bytes(2, 2, to), 8, "x"),
        ValueError,
    ),
    "a must be uint8, got int8": (lambda to: ops.trit_reduce(_bytes(2, 2, to).view(torch.int8), None, 8), TypeError),
    "columns must not be negative, got -1": (lambda to: ops.trit_reduce(_bytes(2, 0, to), None, -1), ValueError),
    r"weight must be \(out_features, 8\) for x of \[1, 8\], got \[4, 7\]": (
        lambda to: ops.half_linear(to(torch.ones(1, 8)), to(torch.ones(4, 7).half())),
        ValueError,
    ),
    r"weight must be \(out_features, 8\) for x of \[1, 8\], got \[8\]": (
        lambda to: ops.linear_i8(to(torch.ones(1, 8)), to(torch.ones(8, dtype=torch.int8)), to(torch.ones(1))),
        ValueError,
    ),
    "depth must be from 1 to 5, got 0": (lambda to: _depth(to, 0), ValueError),
    "multiple of depth=3 rows, got 8": (lambda to: _depth(to, 3), ValueError),
    "layout must be 'rows', 'tq1_0' or": (lambda to: ops.ternary_from_base3(_bytes(1, 2, to), 9, "x"), ValueError),
    "in_features must not be negative": (lambda to: ops.ternary_from_base3(_bytes(1, 0, to), -1), ValueError),
    "must be a multiple of 256": (lambda to: ops.ternary_from_base3(_bytes(1, 54, to), 250, "tq1_0"), ValueError),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_meta_tensors_are_refused_as_real_ones_are(device: str) -> None:
    for message, (call, error) in REFUSED.items():
        with pytest.raises(error, match=message):
            call(lambda tensor: tensor.to(device))


def test_a_store_that_would_write_nothing_is_refused() -> None:
    heads, kv, cos = torch.ones(1, 3, 16), torch.zeros(2, 1, 1, 4, 16), torch.ones(1, 16)
    for name, arguments in {"cos": (cos.to("meta"), cos), "sin": (cos, cos.to("meta"))}.items():
        with pytest.raises(RuntimeError, match=f"heads is on cpu but {name} is on meta"):
            ops.rotary_store(heads, kv, *arguments, [1])


def test_the_first_tensor_is_named_where_devices_differ() -> None:
    codes = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="a is on cpu but b is on meta"):
        ops.bitplane_matmul(codes, codes.to("meta"), 8)
