import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("hadamard")


def _matrix(n: int) -> Tensor:
    """Sylvester's matrix by its recursion, over sqrt(n), in float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h / n**0.5


def _signs(k: int, seed: int) -> Tensor:
    return (2 * torch.randint(0, 2, (k,), generator=helpers.seeded(seed)) - 1).to(torch.int8)


def _exact(x: Tensor, n: int, before: Tensor | None, after: Tensor | None) -> Tensor:
    one = torch.ones(x.shape[-1], dtype=torch.float64)
    wide = x.double() * (one if before is None else before)
    y = (wide.unflatten(-1, (-1, n)) @ _matrix(n)).flatten(-2)
    return y * (one if after is None else after)


@helpers.each("n", [1, 2, 4, 8, 16, 32, 64, 128, 1024])
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_hadamard_is_the_matrix_of_sylvester(dtype: torch.dtype, n: int) -> None:
    x = helpers.randn(2, 3, 3 * n, dtype=dtype)
    for before, after in ((None, None), (_signs(3 * n, 1), None), (None, _signs(3 * n, 2)), (_signs(3 * n, 3),) * 2):
        y = ops.hadamard(x, n, before, after)
        assert y.dtype == dtype
        helpers.assert_near(y, _exact(x, n, before, after))
        helpers.assert_same_bits(reference.hadamard(x, n, before, after), y)


@pytest.mark.parametrize("n", [4096, 1 << 15])
def test_hadamard_of_large_blocks_keeps_its_order_of_sums(n: int) -> None:
    x = helpers.randn(1, n)
    y = ops.hadamard(x, n, _signs(n, 1))
    helpers.assert_same_bits(y, reference.hadamard(x, n, _signs(n, 1)))
    back = ops.hadamard(y, n, None, _signs(n, 1))
    helpers.assert_near(back, x)


def test_hadamard_of_one_is_a_row_of_signs() -> None:
    x = torch.zeros(8)
    x[5] = 1.0
    bits = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])  # popcount(r & 5) % 2
    helpers.assert_near(ops.hadamard(x, 8), (1 - 2 * bits) / 8**0.5)


def test_hadamard_of_halves_is_summed_in_float32() -> None:
    x = torch.full((1024,), 60000.0, dtype=torch.float16)
    x[0] = -60000.0
    y = ops.hadamard(x, 1024)  # the sums reach 6e7, the result 1.9e6 in column 0 alone
    assert y[0] == torch.inf
    assert torch.equal(y[1:], torch.full((1023,), -3750.0, dtype=torch.float16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hadamard_keeps_what_is_not_finite_in_its_block(value: float) -> None:
    x = helpers.randn(2, 32)
    x[0, 17] = value
    y = ops.hadamard(x, 16)
    assert not y[0, 16:].isfinite().any()
    assert y[0, :16].isfinite().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("layout", helpers.LAYOUTS)
def test_hadamard_of_layout_equals_contiguous(layout: str) -> None:
    x, signs = helpers.randn(6, 64), _signs(64, 1)
    rearranged = helpers.LAYOUTS[layout]
    assert torch.equal(ops.hadamard(rearranged(x), 32, rearranged(signs)), ops.hadamard(x, 32, signs))


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 0), (1, 1, 1, 8)], ids=str)
def test_hadamard_keeps_the_shape(shape: tuple[int, ...]) -> None:
    x = helpers.randn(*shape)
    assert torch.equal(ops.hadamard(x, 8), reference.hadamard(x, 8))


def test_hadamard_with_two_threads_equals_one() -> None:
    x = helpers.randn(300, 1024)
    with helpers.threads(1):
        one = ops.hadamard(x, 256)
    with helpers.threads(2):
        assert torch.equal(ops.hadamard(x, 256), one)


def test_hadamard_has_derivatives() -> None:
    x, before, after = helpers.randn(3, 16).requires_grad_(), _signs(16, 1), _signs(16, 2)
    g = helpers.randn(3, 16, seed=4)
    matrix = torch.diag(after.double()) @ torch.block_diag(_matrix(8), _matrix(8)) @ torch.diag(before.double())
    (grad,) = torch.autograd.grad(ops.hadamard(x, 8, before, after), x, g)
    helpers.assert_near(grad, g.double() @ matrix)
    y = ops.hadamard(x, 8, before, after)
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    curve = 6 * (x.double() @ matrix.t()) * (torch.ones(16, dtype=torch.float64) @ matrix.t())
    helpers.assert_near(second, curve @ matrix)
    assert not ops.hadamard(x.detach(), 8).requires_grad


def test_hadamard_of_a_mapped_x_is_one_batch() -> None:
    x = helpers.randn(4, 8, 3)
    y = torch.vmap(lambda row: ops.hadamard(row, 8), in_dims=2)(x)
    assert torch.equal(y, ops.hadamard(x.movedim(2, 0), 8))


_X = torch.ones(2, 24)
_BAD_SIGN = torch.ones(24, dtype=torch.int8)
_BAD_SIGN[7] = 0


@helpers.once
@helpers.each(
    ("arguments", "error", "message"),
    [
        ((_X.int(), 8), TypeError, "x must be float32, float16 or bfloat16, got int32"),
        ((torch.tensor(1.0), 1), ValueError, "x must have at least one dimension, got a scalar"),
        ((_X, 16), ValueError, "block_size must divide the last dimension of x, got block_size=16 and 24 columns"),
        ((_X, 12), ValueError, "block_size must be a power of two from 1 to 32768, got 12"),
        ((_X, 0), ValueError, "block_size must be a power of two from 1 to 32768, got 0"),
        ((_X, -8), ValueError, "got -8"),
        ((torch.ones(1, 1 << 16), 1 << 16), ValueError, "got 65536"),
        ((_X, 8, torch.ones(8, dtype=torch.int8)), ValueError, r"sign_before must be \(24,\), .* got \[8\]"),
        ((_X, 8, None, torch.ones(24)), TypeError, "sign_after must be int8, got float32"),
        ((_X, 8, _BAD_SIGN), ValueError, "sign_before must be 1 or -1, got 0 at column 7"),
        ((_X, 8, None, 2 * _BAD_SIGN), ValueError, "sign_after must be 1 or -1, got 2 at column 0"),
        ((_X, 8, _BAD_SIGN.to("meta")), RuntimeError, "x is on cpu but sign_before is on meta"),
    ],
    ids=[
        "dtype",
        "scalar",
        "does not divide",
        "no power",
        "zero",
        "negative",
        "too large",
        "length",
        "sign dtype",
        "sign value",
        "sign after",
        "device",
    ],
)
def test_hadamard_refuses(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.hadamard(*arguments)


@helpers.once
def test_hadamard_passes_opcheck() -> None:
    op = torch.ops.bittorch.hadamard.default
    torch.library.opcheck(op, (helpers.randn(2, 24), 8))
    torch.library.opcheck(op, (helpers.randn(2, 24).requires_grad_(), 8, _signs(24, 1), _signs(24, 2)))
