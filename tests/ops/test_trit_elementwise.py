import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("trit_elementwise")
# By hand, for a and b from -1 to 1 in rows of a.
TABLES = {
    "add": [[-1, -1, 0], [-1, 0, 1], [0, 1, 1]],
    "sub": [[0, -1, -1], [1, 0, -1], [1, 1, 0]],
    "mul": [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
    "min": [[-1, -1, -1], [-1, 0, 0], [-1, 0, 1]],
    "max": [[-1, 0, 1], [0, 0, 1], [1, 1, 1]],
    "consensus": [[-1, 0, 0], [0, 0, 0], [0, 0, 1]],
    "eq": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "ne": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
    "lt": [[0, 1, 1], [0, 0, 1], [0, 0, 0]],
    "le": [[1, 1, 1], [0, 1, 1], [0, 0, 1]],
    "gt": [[0, 0, 0], [1, 0, 0], [1, 1, 0]],
    "ge": [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
}
UNARY = {"neg": [1, 0, -1], "abs": [1, 0, 1]}


def _packed(values: object) -> Tensor:
    return helpers.pack(torch.as_tensor(values, dtype=torch.int8).reshape(1, -1))


@pytest.mark.parametrize("function", TABLES)
def test_function_has_its_table(function: str) -> None:
    a, b = _packed([-1, -1, -1, 0, 0, 0, 1, 1, 1]), _packed([-1, 0, 1] * 3)
    expected = _packed(TABLES[function])
    assert torch.equal(ops.trit_elementwise(a, b, function, 9), expected)
    assert torch.equal(reference.trit_elementwise(a, b, function, 9), expected)


@pytest.mark.parametrize("function", UNARY)
def test_function_of_one_has_its_table(function: str) -> None:
    assert torch.equal(ops.trit_elementwise(_packed([-1, 0, 1]), None, function, 3), _packed(UNARY[function]))


@pytest.mark.parametrize("k", helpers.EDGE_SIZES)
def test_kernel_equals_the_reference_and_pads_with_zeros(k: int) -> None:
    a, b = helpers.pack(helpers.random_codes(3, k)), helpers.pack(helpers.random_codes(3, k, seed=1))
    for function in (*TABLES, *UNARY):
        other = b if function in TABLES else None
        y = ops.trit_elementwise(a, other, function, k)
        assert torch.equal(y, reference.trit_elementwise(a, other, function, k)), function
        assert ops.ternary_check(y, k).tolist() == [-1] * 3


def test_one_row_stands_for_all() -> None:
    a, b = helpers.pack(helpers.random_codes(5, 21)), helpers.pack(helpers.random_codes(1, 21, seed=1))
    for left, right in ((a, b), (b, a)):
        y = ops.trit_elementwise(left, right, "sub", 21)
        assert torch.equal(y, ops.trit_elementwise(left.expand(5, 6).clone(), right.expand(5, 6).clone(), "sub", 21))


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_layout_and_address_do_not_matter(layout: str) -> None:
    a, b = helpers.pack(helpers.random_codes(6, 600)), helpers.pack(helpers.random_codes(6, 600, seed=1))
    expected = ops.trit_elementwise(a, b, "add", 600)
    assert torch.equal(ops.trit_elementwise(helpers.LAYOUTS[layout](a), b, "add", 600), expected)
    shifted = torch.empty(6 * 150 + 1, dtype=torch.uint8)[1:].view(6, 150).copy_(a)
    assert torch.equal(ops.trit_elementwise(shifted, b, "add", 600), expected)


def test_wrong_calls_are_refused_with_values() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    with pytest.raises(ValueError, match=r"function must be one of neg, abs, .*, got 'xor'"):
        ops.trit_elementwise(a, a, "xor", 9)
    with pytest.raises(ValueError, match="function 'add' is of 2 arrays; b is missing"):
        ops.trit_elementwise(a, None, "add", 9)
    with pytest.raises(ValueError, match="function 'neg' is of 1 array; b must be None"):
        ops.trit_elementwise(a, a, "neg", 9)
    with pytest.raises(ValueError, match=r"a must be \(rows, 4\) uint8 for columns=13, got \[3, 3\]"):
        ops.trit_elementwise(a, a, "add", 13)
    with pytest.raises(ValueError, match="as many rows, or one of them one, got 3 and 2"):
        ops.trit_elementwise(a, a[:2], "add", 9)
    with pytest.raises(ValueError, match="columns must not be negative, got -1"):
        ops.trit_elementwise(a, a, "add", -1)
    with pytest.raises(TypeError, match="b must be uint8, got int8"):
        ops.trit_elementwise(a, a.to(torch.int8), "add", 9)
    with pytest.raises(RuntimeError, match="b is on meta"):
        ops.trit_elementwise(a, a.to("meta"), "add", 9)


def test_op_passes_opcheck() -> None:
    a = helpers.pack(helpers.random_codes(3, 9))
    torch.library.opcheck(torch.ops.bittorch.trit_elementwise.default, (a, a[:1], "add", 9))


def test_threads_give_the_same_bits() -> None:
    a, b = helpers.pack(helpers.random_codes(1, 1 << 20)), helpers.pack(helpers.random_codes(1, 1 << 20, seed=1))
    expected = ops.trit_elementwise(a, b, "mul", 1 << 20)
    with helpers.threads(3):
        assert torch.equal(ops.trit_elementwise(a, b, "mul", 1 << 20), expected)
