"""The tensor-core kernels against the CPU kernels: every size that is chosen for them, extremes, refusals."""

import itertools

import pytest
import torch
from torch import Tensor

from bittorch import ops
from tests.gpu.operands import BULK, DEVICE, FLOATS, SKINNY, TOLERANCE, operands, random_codes


def few_tokens() -> list[tuple[int, int, int, int]]:
    """(m, n, k, group_size), group_size 0 being a scale per row: what SKINNY takes, up to several parts of k."""
    shapes = [(m, n, k, 0) for m in (1, 2, 5, 8, 9, 16) for n, k in ((1, 64), (16, 256), (35, 320), (130, 2560))]
    shapes += [(1, 40, 8192, 0), (16, 40, 8192, 0), (3, 1024, 14336, 0), (16, 4096, 4096, 0)]
    return shapes + [(m, n, 3072, g) for m, n in ((1, 35), (8, 130), (16, 1024)) for g in (64, 128, 192, 256, 1024)]


def many_tokens() -> list[tuple[int, int, int, int]]:
    """What BULK takes: tiles that are full and not, several parts of k, long groups."""
    shapes = [(m, n, k, 0) for m in (17, 32, 48, 49, 130) for n, k in ((1, 64), (130, 320), (300, 2560))]
    shapes += [(18, 40, 8192, 0), (64, 4096, 4096, 0), (3, 40, 14336, 0), (513, 1000, 1024, 0)]
    return shapes + [(m, n, 3072, g) for m, n in ((17, 35), (100, 130)) for g in (64, 128, 192, 256, 1536)]


def problems_of(variant: str) -> list[tuple[int, int, int, int]]:
    return few_tokens() if variant == SKINNY else many_tokens()


@pytest.mark.parametrize("variant", [SKINNY, BULK])
@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("dtype", FLOATS)
def test_tensor_cores_with_int8_equal_the_cpu(variant: str, bits: int, dtype: torch.dtype) -> None:
    for index, (m, n, k, group_size) in enumerate(problems_of(variant)):
        if (m * bits // 8 > 16) if variant == SKINNY else (group_size and bits > 8):
            continue
        _, w_packed, scale = operands(n, k, group_size)
        x = torch.randn(m, k).to(dtype)
        bias = (None, torch.randn(n), torch.randn(n).to(dtype))[index % 3]
        y = ops.ternary_linear_w2a8(x, w_packed, scale, bias, activation_bits=bits)
        arguments = (x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), None if bias is None else bias.to(DEVICE))
        named = ops.ternary_linear_w2a8(*arguments, activation_bits=bits, variant=variant)
        assert torch.equal(named.cpu(), y), (m, n, k, group_size)
        assert torch.equal(ops.ternary_linear_w2a8(*arguments, activation_bits=bits), named)
        if bits == 8:
            q, x_scale = ops.act_quantize(arguments[0])
            given = {"x_scale": x_scale, "out_dtype": dtype, "variant": variant}
            assert torch.equal(ops.ternary_linear_w2a8(q, *arguments[1:], **given), named)


@pytest.mark.parametrize("variant", [SKINNY, BULK])
def test_tensor_cores_at_the_extremes_are_exact(variant: str) -> None:
    for value, code, k in itertools.product((-127, 127), (-1, 1), (4096, 300032)):
        q, x_scale = torch.full((9, k), value, dtype=torch.int8), torch.ones(9, 1)
        w_packed = ops.ternary_pack(torch.full((3, k), code, dtype=torch.int8))
        y = ops.ternary_linear_w2a8(
            q.to(DEVICE), w_packed.to(DEVICE), torch.ones(1, device=DEVICE), x_scale=x_scale.to(DEVICE),
            out_dtype=torch.float32, variant=variant,
        )  # fmt: skip
        assert torch.equal(y.cpu(), torch.full((9, 3), float(value * code * k)))


@pytest.mark.parametrize("variant", [SKINNY, BULK])
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_tensor_cores_with_halves_are_close_to_float64(variant: str, dtype: torch.dtype) -> None:
    for index, (m, n, k, group_size) in enumerate(problems_of(variant)):
        codes, w_packed, scale = operands(n, k, group_size)
        x = torch.randn(m, k).to(dtype)
        bias = (None, torch.randn(n), torch.randn(n).to(dtype))[index % 3]
        wide = scale.double().repeat_interleave(group_size, dim=1) if group_size else scale.double()[:, None]
        expected = x.double() @ (codes.double() * wide).T + (0.0 if bias is None else bias.double())
        arguments = (x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), None if bias is None else bias.to(DEVICE))
        y = ops.ternary_linear_packed(*arguments, variant)
        error = (y.cpu().double() - expected).norm() / expected.norm()
        assert error <= TOLERANCE[dtype], (m, n, k, group_size)
        for _ in range(3):
            assert torch.equal(ops.ternary_linear_packed(*arguments, variant), y)
        chosen = SKINNY if m <= 16 and group_size <= 1024 else BULK
        assert torch.equal(ops.ternary_linear_packed(*arguments), ops.ternary_linear_packed(*arguments, chosen))


@pytest.mark.parametrize("variant", [SKINNY, BULK])
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_tensor_cores_spread_inf_and_nan(variant: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 128).to(dtype)
    x[1, 127], x[2, 3] = torch.inf, torch.nan
    _, w_packed, scale = operands(40, 128, 0)
    y = ops.ternary_linear_packed(x, w_packed, scale)
    y_gpu = ops.ternary_linear_packed(x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), None, variant).cpu()
    assert torch.equal(y_gpu.isnan(), y.isnan())
    assert torch.equal(y_gpu.isinf(), y.isinf())


@pytest.mark.parametrize("variant", [SKINNY, BULK])
def test_tensor_cores_take_padded_rows_and_any_activations(variant: str) -> None:
    """Rows of 16 bytes apart serve every in_features; activations may begin at any byte."""
    for k in (1, 63, 65, 100, 300, 2570):
        codes = random_codes(33, k)
        padded = torch.full((33, -(-k // 64) * 16), 0xFF, dtype=torch.uint8, device=DEVICE)
        rows = padded[:, : -(-k // 4)]
        rows.copy_(ops.ternary_pack(codes))
        x, scale = torch.randn(3, k + 1).half(), torch.rand(33) + 0.1
        y = ops.ternary_linear_w2a8(x[:, 1:], ops.ternary_pack(codes), scale)
        strided = x.to(DEVICE)[:, 1:]
        assert torch.equal(ops.ternary_linear_w2a8(strided, rows, scale.to(DEVICE), variant=variant).cpu(), y)
        wide = x[:, 1:].double() @ (codes.double() * scale.double()[:, None]).T
        packed = ops.ternary_linear_packed(strided, rows, scale.to(DEVICE), None, variant).cpu().double()
        assert (packed - wide).norm() <= TOLERANCE[torch.float16] * wide.norm()


@pytest.mark.parametrize("bits", [0, 8, 24])
@pytest.mark.parametrize("m", [1, 5, 16, 17, 70])
def test_tensor_cores_take_any_in_features(m: int, bits: int) -> None:
    """Rows that do not begin at multiples of 16 bytes are copied to such that do."""
    variant = SKINNY if m * max(1, bits // 8) <= 16 else BULK
    for k in (1, 3, 68, 100, 2570):
        codes, scale, x = random_codes(33, k), torch.rand(33) + 0.1, torch.randn(m, k).half()
        w_packed = ops.ternary_pack(codes)
        arguments = x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE)
        if bits:
            y = ops.ternary_linear_w2a8(x, w_packed, scale, activation_bits=bits)
            y_gpu = ops.ternary_linear_w2a8(*arguments, activation_bits=bits, variant=variant)
            assert torch.equal(y_gpu.cpu(), y)
            assert torch.equal(ops.ternary_linear_w2a8(*arguments, activation_bits=bits), y_gpu)
            continue
        expected = x.double() @ (codes.double() * scale.double()[:, None]).T
        y_gpu = ops.ternary_linear_packed(*arguments, None, variant)
        assert (y_gpu.cpu().double() - expected).norm() <= TOLERANCE[torch.float16] * expected.norm()


def test_a_kernel_that_cannot_take_the_problem_says_so() -> None:
    def product(m: int, k: int, bits: int = 8, group_size: int = 0) -> Tensor:
        _, w_packed, scale = (t.to(DEVICE) for t in operands(5, k, group_size))
        x = torch.randn(m, k, device=DEVICE)
        return ops.ternary_linear_w2a8(x, w_packed, scale, activation_bits=bits, variant=SKINNY)

    with pytest.raises(ValueError, match=r"at most 16 rows of activations.*got 17 tokens of 8 bits"):
        product(17, 64)
    with pytest.raises(ValueError, match=r"at most 16 rows of activations.*got 6 tokens of 24 bits"):
        product(6, 64, bits=24)
    with pytest.raises(ValueError, match=r"multiples of 64 up to 1024.*groups of 32"):
        product(1, 64, group_size=32)
