"""Every CUDA kernel against the CPU kernels, which tests/kernels and tests/ops hold to their definitions.

On a device, memory errors and races first, then results:
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m pytest -q -x tests/gpu
    compute-sanitizer --tool racecheck python -m pytest -q -x tests/gpu
"""

import itertools

import pytest
import torch

import bittorch
from bittorch import ops
from tests.gpu.operands import (
    BULK,
    DEVICE,
    FLOATS,
    SKINNY,
    TOLERANCE,
    UNPACK,
    operands,
    random_codes,
    scales,
)

SIZES = (1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 257)
METHODS = {"max": 0.05, "twn": 0.7, "absmean": 0.5, "absmedian": 0.5, "optimal": 0.0, "nm34": 0.0}


def variants(op: str) -> list[str]:
    """The kernels that take every problem and sum in fp32; the others have tests of their own."""
    rows = [row for row in bittorch._C.kernels() if row["op"] == op and row["device"] == "cuda"]
    return [row["variant"] for row in rows if row["variant"] not in (SKINNY, BULK, UNPACK)]


def problems() -> list[tuple[int, int, int, str]]:
    """(m, n, k, granularity): every size in every place, and a few larger ones."""
    shapes = [shape for s in SIZES for shape in ((s, 5, 33), (3, s, 65), (2, 33, s))]
    shapes += [(0, 5, 8), (3, 0, 8), (3, 5, 0), (17, 130, 1000), (70, 65, 4096), (1, 1024, 2048)]
    return [
        (m, n, k, granularity)
        for m, n, k in shapes
        for granularity in ("tensor", "channel", "group")
        if granularity != "group" or (k and k % 4 == 0)
    ]


@pytest.mark.parametrize("k", [0, *SIZES, 4100])
def test_pack_unpack_and_check_equal_the_cpu(k: int) -> None:
    for n in (0, 1, 5, 67):
        codes = random_codes(n, k)
        packed = ops.ternary_pack(codes)
        assert torch.equal(ops.ternary_pack(codes.to(DEVICE)).cpu(), packed)
        strided = codes.repeat_interleave(2, dim=1).to(DEVICE)[:, ::2]
        assert torch.equal(ops.ternary_pack(strided).cpu(), packed)
        assert torch.equal(ops.ternary_unpack(packed.to(DEVICE), None, k, torch.int8).cpu(), codes)
        for granularity, dtype in itertools.product(("tensor", "channel", "group"), FLOATS):
            if granularity != "group" or (k and k % 4 == 0):
                scale = scales(granularity, n, k)
                y = ops.ternary_unpack(packed.to(DEVICE), scale.to(DEVICE), k, dtype)
                assert torch.equal(y.cpu(), ops.ternary_unpack(packed, scale, k, dtype))
        assert torch.equal(ops.ternary_transpose(packed.to(DEVICE), k).cpu(), ops.ternary_transpose(packed, k))
        faulty = packed.clone()
        if packed.numel():
            faulty.view(-1)[torch.randint(packed.numel(), (3,))] |= 0xC0
        for rows in (packed, faulty):
            assert torch.equal(ops.ternary_check(rows.to(DEVICE), k).cpu(), ops.ternary_check(rows, k))


@pytest.mark.parametrize("dtype", FLOATS)
def test_embedding_and_hadamard_equal_the_cpu(dtype: torch.dtype) -> None:
    packed, scale = ops.ternary_pack(random_codes(14, 100)), scales("channel", 14, 100)
    indices = torch.randint(7, (3, 5))
    y = ops.ternary_embedding(indices, packed, scale, 100, dtype, 2)
    table = packed.to(DEVICE), scale.to(DEVICE), 100, dtype, 2
    assert torch.equal(ops.ternary_embedding(indices.to(DEVICE), *table).cpu(), y)
    outside = ops.ternary_embedding(torch.tensor([-1, 7], device=DEVICE), *table)
    assert outside.isnan().all()
    for block_size in (64, 4096, 32768):
        x, sign = torch.randn(2, 32768).to(dtype), torch.ones(32768, dtype=torch.int8)
        sign[::3] = -1
        y = ops.hadamard(x, block_size, sign, sign)
        assert torch.equal(ops.hadamard(x.to(DEVICE), block_size, sign.to(DEVICE), sign.to(DEVICE)).cpu(), y)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["ls", "mean", "max", "rms"])
def test_quantize_gives_the_codes_of_the_cpu(method: str, rule: str, dtype: torch.dtype) -> None:
    for (n, k), granularity in itertools.product(
        ((1, 1), (3, 5), (33, 64), (65, 257), (7, 4096)), ("tensor", "channel", "group")
    ):
        if granularity == "group" and k % 4:
            continue
        w = torch.randn(n, k).to(dtype)
        w[0, 0] = 0.0
        arguments = (method, rule, METHODS[method], granularity, 4 if k == 64 else k)
        packed, scale = ops.ternary_quantize(w, *arguments)
        packed_gpu, scale_gpu = ops.ternary_quantize(w.to(DEVICE), *arguments)
        assert torch.equal(packed_gpu.cpu(), packed)
        assert ((scale_gpu.cpu().view(torch.int32) - scale.view(torch.int32)).abs() <= 1).all()
        again = ops.ternary_quantize(w.to(DEVICE), *arguments)
        assert torch.equal(again[0], packed_gpu)
        assert torch.equal(again[1], scale_gpu)


@pytest.mark.parametrize("method", METHODS)
def test_quantize_zero_and_non_finite_groups(method: str) -> None:
    w = torch.randn(6, 37)
    w[0] = 0.0
    w[1, 36], w[2, 0], w[3, 5] = torch.nan, torch.inf, -torch.inf
    w[4] = 1e-7
    arguments = (method, "ls", METHODS[method], "channel", 0)
    packed, scale = ops.ternary_quantize(w, *arguments)
    packed_gpu, scale_gpu = ops.ternary_quantize(w.to(DEVICE), *arguments)
    assert torch.equal(packed_gpu.cpu(), packed)
    assert torch.equal(scale_gpu.isnan().cpu(), scale.isnan())
    assert scale_gpu[0] == scale[0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_act_quantize_equals_the_cpu(dtype: torch.dtype) -> None:
    for k in (0, *SIZES, 4099):
        x = (torch.randn(9, k) * torch.logspace(-3, 2, 9)[:, None]).to(dtype)
        if k:
            x[0], x[1, -1], x[2, 0] = 0.0, torch.inf, torch.nan
        q, scale = ops.act_quantize(x)
        q_gpu, scale_gpu = ops.act_quantize(x.to(DEVICE))
        assert torch.equal(q_gpu.cpu(), q)
        torch.testing.assert_close(scale_gpu.cpu(), scale, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [8, 16, 24])
def test_norm_equals_the_cpu(dtype: torch.dtype, bits: int) -> None:
    for k in (*SIZES, 4099):
        x = (torch.randn(9, k) * torch.logspace(-3, 2, 9)[:, None]).to(dtype)
        x[0], x[1, -1], x[2, 0] = 0.0, torch.inf, torch.nan
        weight = torch.randn(k).to(dtype)
        on_cpu = ops.act_quantize(x, bits, norm_weight=weight)
        on_gpu = ops.act_quantize(x.to(DEVICE), bits, norm_weight=weight.to(DEVICE))
        for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
            torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=0, equal_nan=True)
        operands = x[3:], ops.ternary_pack(random_codes(40, k)), scales("channel", 40, k)
        y = ops.ternary_linear_w2a8(*operands, activation_bits=bits, norm_weight=weight)
        y_gpu = ops.ternary_linear_w2a8(
            *(t.to(DEVICE) for t in operands), activation_bits=bits, norm_weight=weight.to(DEVICE)
        )
        assert torch.equal(y_gpu.cpu(), y), k


@pytest.mark.parametrize("variant", variants("ternary_linear_packed"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_packed_is_close_to_float64(variant: str, dtype: torch.dtype) -> None:
    for index, (m, n, k, granularity) in enumerate(problems()):
        codes, scale, x = random_codes(n, k), scales(granularity, n, k), torch.randn(m, k).to(dtype)
        bias = (None, torch.randn(n), torch.randn(n).to(dtype))[index % 3]
        wide = scale.double().repeat_interleave(4, dim=1) if granularity == "group" else scale.double()[:, None]
        expected = x.double() @ (codes.double() * wide).T + (0.0 if bias is None else bias.double())
        packed = ops.ternary_pack(codes).to(DEVICE)
        arguments = (x.to(DEVICE), packed, scale.to(DEVICE), None if bias is None else bias.to(DEVICE), variant)
        y = ops.ternary_linear_packed(*arguments)
        assert y.dtype == dtype
        assert y.shape == (m, n)
        error = (y.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error <= TOLERANCE[dtype], (m, n, k, granularity)
        assert torch.equal(ops.ternary_linear_packed(*arguments), y)


@pytest.mark.parametrize("variant", variants("ternary_linear_packed"))
def test_linear_packed_spreads_inf_and_nan(variant: str) -> None:
    x = torch.randn(4, 70)
    x[1, 69], x[2, 3] = torch.inf, torch.nan
    w_packed, scale = ops.ternary_pack(random_codes(40, 70)), scales("channel", 40, 70)
    y = ops.ternary_linear_packed(x, w_packed, scale)
    y_gpu = ops.ternary_linear_packed(x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), None, variant).cpu()
    assert torch.equal(y_gpu.isnan(), y.isnan())
    assert torch.equal(y_gpu.isinf(), y.isinf())


@pytest.mark.parametrize("variant", variants("ternary_linear_w2a8"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_w2a8_equals_the_cpu(variant: str, dtype: torch.dtype) -> None:
    for index, (m, n, k, granularity) in enumerate(problems()):
        w_packed, scale = ops.ternary_pack(random_codes(n, k)), scales(granularity, n, k)
        x = torch.randn(m, k).to(dtype)
        bias = (None, torch.randn(n), torch.randn(n).to(dtype))[index % 3]
        y = ops.ternary_linear_w2a8(x, w_packed, scale, bias)
        bias_gpu = None if bias is None else bias.to(DEVICE)
        y_gpu = ops.ternary_linear_w2a8(x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), bias_gpu, variant=variant)
        assert torch.equal(y_gpu.cpu(), y), (m, n, k, granularity)
        q, x_scale = ops.act_quantize(x.to(DEVICE))
        y_codes = ops.ternary_linear_w2a8(
            q, w_packed.to(DEVICE), scale.to(DEVICE), bias_gpu, x_scale=x_scale, out_dtype=dtype, variant=variant
        )
        assert torch.equal(y_codes, y_gpu)


@pytest.mark.parametrize("variant", variants("ternary_linear_w2a8"))
@pytest.mark.parametrize("bits", [16, 24])
def test_digits_equal_the_cpu(variant: str, bits: int) -> None:
    for m, n, k, granularity in problems():
        w_packed, scale, x = ops.ternary_pack(random_codes(n, k)), scales(granularity, n, k), torch.randn(m, k)
        for on_gpu, on_cpu in zip(ops.act_quantize(x.to(DEVICE), bits), ops.act_quantize(x, bits), strict=True):
            assert torch.equal(on_gpu.cpu(), on_cpu), (m, k)
        operands = x, w_packed, scale
        y = ops.ternary_linear_w2a8(*operands, activation_bits=bits)
        y_gpu = ops.ternary_linear_w2a8(*(t.to(DEVICE) for t in operands), activation_bits=bits, variant=variant)
        assert torch.equal(y_gpu.cpu(), y), (m, n, k, granularity)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group_size", [0, 20, 64])
def test_decoding_and_cublas_are_close_to_float64(dtype: torch.dtype, group_size: int) -> None:
    """Named, and where it is the choice: float32 from 64 tokens on. Several chunks of rows, bias of both types."""
    for m, n, k in ((1, 200, 320), (70, 5000, 2560), (1100, 300, 320)):
        codes, w_packed, scale = operands(n, k, group_size)
        x, bias = torch.randn(m, k).to(dtype), (None, torch.randn(n), torch.randn(n).to(dtype))[m % 3]
        wide = scale.double().repeat_interleave(group_size, dim=1) if group_size else scale.double()[:, None]
        expected = x.double() @ (codes.double() * wide).T + (0.0 if bias is None else bias.double())
        arguments = (x.to(DEVICE), w_packed.to(DEVICE), scale.to(DEVICE), None if bias is None else bias.to(DEVICE))
        y = ops.ternary_linear_packed(*arguments, UNPACK)
        assert (y.cpu().double() - expected).norm() <= TOLERANCE[dtype] * expected.norm(), (m, n, k)
        assert torch.equal(ops.ternary_linear_packed(*arguments, UNPACK), y)
        if dtype == torch.float32 and m >= 64:
            assert torch.equal(ops.ternary_linear_packed(*arguments), y)


def test_the_device_of_the_tensors_counts() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    _, w_packed, scale = operands(70, 256, 0)
    w2a8 = ops.ternary_linear_w2a8
    for m, bits in ((3, 0), (3, 8), (40, 0), (40, 24), (100, 0)):
        x = torch.randn(m, 256)
        results = []
        for device in ("cuda:0", "cuda:1"):
            arguments = x.to(device), w_packed.to(device), scale.to(device)
            y = w2a8(*arguments, activation_bits=bits) if bits else ops.ternary_linear_packed(*arguments)
            assert y.device == torch.device(device)
            results.append(y.cpu())
        assert torch.equal(*results)
        assert torch.cuda.current_device() == 0


def test_errors_leave_nothing_behind() -> None:
    """A refused call raises before anything is enqueued, and the next call is good."""
    _, w_packed, scale = operands(70, 256, 0)
    x, w_gpu, scale_gpu = torch.randn(40, 256, device=DEVICE), w_packed.to(DEVICE), scale.to(DEVICE)
    expected = ops.ternary_linear_w2a8(x, w_gpu, scale_gpu)
    for arguments, kind, text in (
        ((x, w_packed, scale_gpu), RuntimeError, "is on cuda:0 but w_packed is on cpu|same device"),
        ((x, w_gpu, scale), RuntimeError, "is on cuda:0 but scale is on cpu|same device"),
        ((x, w_gpu[:, :5], scale_gpu), ValueError, "w_packed must be"),
        ((x, w_gpu, scale_gpu[:3]), ValueError, "scale must be"),
    ):
        with pytest.raises(kind, match=text):
            ops.ternary_linear_w2a8(*arguments)
        torch.cuda.synchronize()
        assert torch.equal(ops.ternary_linear_w2a8(x, w_gpu, scale_gpu), expected)
    with pytest.raises(ValueError, match="at most 16 rows"):
        ops.ternary_linear_w2a8(x, w_gpu, scale_gpu, variant=SKINNY)
    assert torch.equal(ops.ternary_linear_w2a8(x, w_gpu, scale_gpu), expected)
