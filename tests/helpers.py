"""What several tests share: tolerances, data, and the storage format once more, in NumPy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bittorch import _C, ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Relative L2 against float64: fp32 sums, and for the halves half an ulp of the last cast.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
EDGE_SIZES = (0, 1, 3, 4, 5, 63, 64, 65, 255, 256, 257)


def dtype_id(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).to(dtype)


def variants(op: str, dtype: torch.dtype | str | None = None) -> list[str]:
    """Kernels of the op that this machine can run on a CPU; those for one type."""
    rows = [row for row in _C.kernels() if row["op"] == op and row["device"] == "cpu" and row["usable"]]
    return [row["variant"] for row in rows if dtype is None or dtype_id(dtype) in row["dtypes"]]


@dataclass(frozen=True)
class Granularity:
    """What shares a scale; group is the columns of a group, 0 for the others."""

    name: str
    group: int = 0

    def __str__(self) -> str:
        return f"{self.name}{self.group or ''}"

    def scale_shape(self, n: int, k: int) -> tuple[int, ...]:
        return {"tensor": (1,), "channel": (n,)}.get(self.name) or (n, k // self.group)


TENSOR, CHANNEL = Granularity("tensor"), Granularity("channel")
GRANULARITIES = (TENSOR, CHANNEL, Granularity("group", 4), Granularity("group", 64))


def slow_but(fast: Iterable[object], values: Iterable[object]) -> list[object]:
    """Parameters of a test, a tuple where it has several: those in ``fast`` always run, the others count as slow."""
    chosen, every = ([v if isinstance(v, tuple) else (v,) for v in given] for given in (fast, values))
    assert all(value in every for value in chosen)
    return [pytest.param(*value, marks=() if value in chosen else pytest.mark.slow) for value in every]


def pairs(values: Iterable[Any]) -> list[tuple[Any, bool, bool]]:
    """Cases of a value and two switches, half of all: every two of the three meet in each way."""
    return [(value, first, first ^ bool(i % 2)) for i, value in enumerate(values) for first in (False, True)]


def each(
    names: str | tuple[str, ...], values: Iterable[Any], ids: Callable[[Any], object] | Sequence[str] = str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but all values in one test: for cases that take less time than pytest's care of
    them. What fails says for which values. Fixtures are shared by all cases, torch's seed is set before each."""
    keys = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    cases = [value if len(keys) > 1 else (value,) for value in values]

    def label(number: int) -> str:
        return ids[number] if isinstance(ids, Sequence) else "-".join(str(ids(value)) for value in cases[number])

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            if not cases:
                pytest.skip("no cases")
            for number, case in enumerate(cases):
                torch.manual_seed(0)
                try:
                    test(*args, **kwargs, **dict(zip(keys, case, strict=True)))
                except (Exception, pytest.fail.Exception) as error:
                    raise AssertionError(f"{', '.join(keys)} = {label(number)}: {error}") from error

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        assert len(left) == len(signature.parameters) - len(keys), f"{test.__name__} does not take {keys}"
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate


def random_codes(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (n, k), generator=seeded(seed), dtype=torch.int8)


def pack(codes: Tensor) -> Tensor:
    """The format by its definition: byte j of a row is c0 | c1 << 2 | c2 << 4 | c3 << 6, 01 = +1, 10 = -1."""
    values = codes.numpy()
    n, k = values.shape
    fields = np.zeros((n, 4 * -(-k // 4)), dtype=np.uint8)
    fields[:, :k] = np.select([values == 1, values == -1], [1, 2], 0)
    c0, c1, c2, c3 = (fields[:, place::4] for place in range(4))
    return torch.from_numpy(c0 | c1 << 2 | c2 << 4 | c3 << 6)


def act_codes(x: Tensor, bits: int) -> Tensor:
    """The codes of `act_quantize` as float64 integers; digits joined."""
    q = ops.act_quantize(x, bits)[0].double()
    if bits == 8:
        return q
    weights = 256.0 ** torch.arange(bits // 8, dtype=torch.float64)
    return (q * weights[:, None]).sum(-2)


def product_of_codes(
    q: Tensor, x_scale: Tensor, weights: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The contract step by step in NumPy: exact integers, products rounded one by one, groups in order, bias, cast.

    The products are in the dtype of x_scale: float32 for codes of 8 bits, float64 for joined digits.
    """
    m, n = x_scale.numel(), len(weights)
    a, w = q.reshape(m, q.shape[-1]).numpy().astype(np.int64), weights.numpy().astype(np.int64)
    groups = scale.shape[1] if scale.dim() == 2 else 1
    scales = scale.reshape(-1, groups).expand(n, groups).numpy()
    s = x_scale.reshape(m, 1).numpy()
    y = np.zeros((m, n), s.dtype)
    for g, (part, rows) in enumerate(zip(np.split(a, groups, 1), np.split(w, groups, 1), strict=True)):
        dot = (part @ rows.T).astype(s.dtype)
        y += dot * (s * scales[:, g]) if s.dtype == np.float32 else dot * s * scales[:, g].astype(np.float64)
    y = y.astype(np.float32)
    if bias is not None:
        y += bias.float().numpy()
    return torch.from_numpy(y).to(dtype).view(*q.shape[:-1], n)


def random_scale(granularity: Granularity, n: int, k: int, seed: int = 1) -> Tensor:
    return torch.rand(granularity.scale_shape(n, k), generator=seeded(seed)) + 0.25


class PackedWeights:
    """Random weights of one shape and granularity, packed."""

    def __init__(self, n: int, k: int, granularity: Granularity = CHANNEL, bias: torch.dtype | None = None) -> None:
        self.codes = random_codes(n, k)
        self.packed = pack(self.codes)
        self.scale = random_scale(granularity, n, k)
        self.bias = None if bias is None else randn(n, seed=5).to(bias)


def expand_scale(scale: Tensor, n: int, k: int) -> Tensor:
    """The float64 scale of every element, (n, k)."""
    if scale.dim() == 1:
        return scale.double()[:, None].expand(n, k)
    return scale.double()[:, torch.arange(k) // (k // scale.shape[1])]


def dense(codes: Tensor, scale: Tensor) -> Tensor:
    """``codes * scale`` in float64."""
    return codes.double() * expand_scale(scale, *codes.shape)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach(), expected.detach()
    error = (actual.double() - expected.double()).norm()
    return float(error / expected.double().norm().clamp(min=1e-30))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Same shape, and the relative L2 distance within the tolerance of the dtype of ``actual``."""
    assert actual.shape == expected.shape
    limit = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    assert relative_l2(actual, expected) <= limit


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal in every bit but the payload of NaN; -0.0 and 0.0 count as equal."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def forced(op: str, variant: str | None) -> Iterator[None]:
    _C.force_kernel(op, variant)
    try:
        yield
    finally:
        _C.force_kernel(op, None)


def each_kernel(op: str) -> Any:
    """A fixture, to be named ``_kernel``: every test of the file runs once with each kernel of the op."""

    @pytest.fixture(autouse=True, params=variants(op))
    def _kernel(request: pytest.FixtureRequest) -> Iterator[None]:
        with forced(op, request.param):
            yield

    return _kernel


# What no kernel decides runs once.
once = pytest.mark.parametrize("_kernel", ["scalar"], indirect=True)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, without the variables of bittorch but those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BITTORCH_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=300
    )


def take_ctrl_c() -> None:
    """A child's ``preexec_fn``: Ctrl-C reaches it also where it is ignored here, as in a background job of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# One matrix in many layouts. Each function returns a tensor equal to its argument, laid out otherwise.
def _transposed(t: Tensor) -> Tensor:
    return t.t().contiguous().t() if t.dim() == 2 else t


def _sliced(t: Tensor) -> Tensor:
    wide = torch.zeros([size + 3 for size in t.shape], dtype=t.dtype)
    view = wide[tuple(slice(1, 1 + size) for size in t.shape)]
    return view.copy_(t)


def _strided(t: Tensor) -> Tensor:
    wide = torch.zeros((*t.shape[:-1], 2 * t.shape[-1]), dtype=t.dtype)
    return wide[..., ::2].copy_(t)


LAYOUTS = {"transposed": _transposed, "sliced": _sliced, "strided": _strided}
