"""Products of TernaryArrays, exact in int32, by counting bits; with a dense operand NumPy's, of the dense array."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bittorch import ops
from bittorch.array.dispatch import call_dense, dense, implements, store
from bittorch.array.reductions import rows_of
from bittorch.array.ternary_array import TernaryArray

_Ints = NDArray[np.int32]


def _rows(a: TernaryArray) -> Tensor:
    """Packed rows of a matrix; those of a transpose come from the packed codes too."""
    if a.T.is_contiguous and not a.is_contiguous:
        return ops.ternary_transpose(rows_of(a.T, a.shape[0]), a.shape[0])
    return rows_of(a, a.shape[1])


def _product(a: TernaryArray, b: TernaryArray) -> _Ints:
    """(m, n) of (m, k) and (n, k)."""
    columns = a.shape[1]
    product: _Ints = ops.bitplane_matmul(_rows(a), _rows(b), columns).numpy()
    return product


@implements(np.matmul)
def matmul(a: TernaryArray, b: TernaryArray) -> Any:
    """``a @ b`` by NumPy's rules, exact int32."""
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul needs at least one dimension of both, got shapes {a.shape} and {b.shape}")
    left, right = a.reshape(1, -1) if a.ndim == 1 else a, b.reshape(-1, 1) if b.ndim == 1 else b
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"matmul: {a.shape} by {b.shape}: {left.shape[-1]} columns meet {right.shape[-2]} rows")
    if left.ndim == right.ndim == 2:
        y = _product(left, right.T)
    else:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        lefts = left._viewed(lambda p: np.broadcast_to(p, batch + p.shape[-2:]))
        rights = right.mT._viewed(lambda p: np.broadcast_to(p, batch + p.shape[-2:]))
        y = np.empty((*batch, left.shape[-2], right.shape[-1]), np.int32)
        for index in np.ndindex(*batch):
            y[index] = _product(lefts[(*index, ...)], rights[(*index, ...)])
    return y.squeeze((-2,) * (a.ndim == 1) + (-1,) * (b.ndim == 1))[()]


@implements(np.tensordot)
def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """`numpy.tensordot`, exact int32 for two TernaryArrays."""
    if not (isinstance(a, TernaryArray) and isinstance(b, TernaryArray)):
        return np.tensordot(dense(a), dense(b), axes)
    first, second = (range(-axes, 0), range(axes)) if isinstance(axes, (int, np.integer)) else axes
    first = [first] if isinstance(first, (int, np.integer)) else list(first)
    second = [second] if isinstance(second, (int, np.integer)) else list(second)
    if [a.shape[d] for d in first] != [b.shape[d] for d in second]:
        raise ValueError(f"tensordot: shapes {a.shape} and {b.shape} differ along axes {first} and {second}")
    (left, shape_a), (right, shape_b) = _as_matrix(a, first), _as_matrix(b, second)
    return _product(left, right).reshape(shape_a + shape_b)[()]


def _as_matrix(a: TernaryArray, axes: list[int]) -> tuple[TernaryArray, list[int]]:
    """A matrix with the axes as its columns, and the sizes of the others."""
    summed = [d % a.ndim for d in axes]
    kept = [d for d in range(a.ndim) if d not in summed]
    shape = [a.shape[d] for d in kept]
    columns = math.prod(a.shape[d] for d in summed)
    return a.transpose(kept + summed).reshape(math.prod(shape), columns), shape


@implements(np.dot)
def dot(a: Any, b: Any, out: Any = None) -> Any:
    """`numpy.dot`, exact int32 for two TernaryArrays."""
    if not (isinstance(a, TernaryArray) and isinstance(b, TernaryArray)):
        return call_dense(np.dot, (a, b), {"out": out})
    if a.ndim == 0 or b.ndim == 0:
        result = np.multiply(a, b, dtype=np.int32)
    else:
        result = tensordot(a, b, ((-1,), (-min(b.ndim, 2),)))
    return result if out is None else store(result, out)


@implements(np.inner)
def inner(a: Any, b: Any) -> Any:
    """`numpy.inner`, exact int32 for two TernaryArrays."""
    if not (isinstance(a, TernaryArray) and isinstance(b, TernaryArray)):
        return np.inner(dense(a), dense(b))
    if 0 in (a.ndim, b.ndim):
        return np.multiply(a, b, dtype=np.int32)
    return tensordot(a, b, ((-1,), (-1,)))


@implements(np.vdot)
def vdot(a: Any, b: Any) -> Any:
    """`numpy.vdot`, exact int32 for two TernaryArrays."""
    if not (isinstance(a, TernaryArray) and isinstance(b, TernaryArray)):
        return np.vdot(dense(a), dense(b))
    return tensordot(a.ravel(), b.ravel(), 1)


def _summing(function: Callable[..., Any], dtype: Any) -> None:
    """A function whose sums would wrap in int8."""
    implements(function)(lambda *args, **kwargs: call_dense(function, args, kwargs, dtype))


for _function in (np.einsum, np.convolve, np.correlate):
    _summing(_function, np.int32)
_summing(np.linalg.multi_dot, np.int64)
_summing(np.linalg.matrix_power, np.int64)
if hasattr(np.linalg, "vecdot"):  # these names came with NumPy 2
    _summing(np.linalg.vecdot, np.int32)
    implements(np.linalg.matmul)(np.matmul)
    implements(np.linalg.tensordot)(tensordot)
