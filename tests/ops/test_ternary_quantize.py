import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

_kernel = helpers.each_kernel("ternary_quantize")
FACTORS = {"max": 0.05, "twn": 0.75, "absmean": 0.5, "absmedian": 0.5, "optimal": 0.0, "nm34": 0.0}
RULES = ("ls", "mean", "max", "rms")
EPS = np.float32(1e-5)


def _best_count(a: np.ndarray) -> int:
    """The k that maximises (sum of the k largest)^2 / k, by trying all; equal values are kept together."""
    ordered = np.sort(a.astype(np.float64))[::-1]
    counts = [k for k in range(1, len(a) + 1) if k == len(a) or ordered[k] != ordered[k - 1]]
    return max(counts, key=lambda k: math.fsum(ordered[:k]) ** 2 / k)


def _kept(a: np.ndarray, method: str, factor: float) -> np.ndarray:
    f = np.float32(factor)
    mean = np.float32(math.fsum(a.tolist()) / len(a))
    if method == "max":
        return a > f * a.max()
    if method == "twn":
        return a > f * mean
    if method == "optimal":
        return a >= np.sort(a)[len(a) - _best_count(a)]
    center = mean if method == "absmean" else np.sort(a)[(len(a) - 1) // 2]
    return a * (np.float32(1) / max(center, EPS)) > f


def _three_of_four(row: np.ndarray) -> np.ndarray:
    """What nm34 keeps of a row."""
    kept = row != 0
    for start in range(0, len(row) - 3, 4):
        kept[start + int(np.argmin(np.abs(row[start : start + 4])))] = False
    return kept


def _group(
    w: np.ndarray, three: np.ndarray, method: str, rule: str, factor: float, largest: float
) -> tuple[np.ndarray, np.float32]:
    """Codes and scale of one finite group, straight from the table of the documentation."""
    a = np.abs(w)
    if not a.any():
        return np.zeros(len(w), np.int8), EPS
    kept = three if method == "nm34" else _kept(a, method, factor)
    scale = {
        "ls": np.float32(math.fsum(a[kept].tolist()) / kept.sum()) if kept.any() else EPS,
        "mean": max(np.float32(math.fsum(a.tolist()) / len(a)), EPS),
        "max": a.max(),
        "rms": np.float32(min(math.sqrt(math.fsum((a.astype(np.float64) ** 2).tolist()) / kept.sum()), largest))
        if kept.any()
        else EPS,
    }[rule]
    return (np.sign(w) * kept).astype(np.int8), scale


def _expected(
    w: Tensor, method: str, rule: str, factor: float, granularity: helpers.Granularity
) -> tuple[Tensor, Tensor]:
    n, k = w.shape
    width = {"tensor": n * k, "channel": k}.get(granularity.name, granularity.group)
    rows = w.float().numpy()
    three = np.stack([_three_of_four(row) for row in rows]).reshape(-1, width)
    largest = torch.finfo(w.dtype).max
    parts = [_group(*part, method, rule, factor, largest) for part in zip(rows.reshape(-1, width), three, strict=True)]
    codes = torch.from_numpy(np.concatenate([codes for codes, _ in parts])).view(n, k)
    scale = torch.tensor(np.array([scale for _, scale in parts], dtype=np.float32)).view(granularity.scale_shape(n, k))
    return codes, scale.flatten() if scale.shape[-1] == 1 else scale


def _quantize(
    w: Tensor,
    method: str,
    rule: str = "ls",
    factor: float | None = None,
    granularity: helpers.Granularity = helpers.CHANNEL,
) -> tuple[Tensor, Tensor]:
    factor = FACTORS[method] if factor is None else factor
    w_packed, scale = ops.ternary_quantize(w, method, rule, factor, granularity.name, granularity.group)
    return ops.ternary_unpack(w_packed, None, w.shape[1], torch.int8), scale


def _assert_quantized(
    w: Tensor,
    method: str,
    rule: str = "ls",
    factor: float | None = None,
    granularity: helpers.Granularity = helpers.CHANNEL,
) -> None:
    factor = FACTORS[method] if factor is None else factor
    codes, scale = _expected(w, method, rule, factor, granularity)
    for name, quantize in (("op", ops.ternary_quantize), ("reference", reference.ternary_quantize)):
        w_packed, got = quantize(w, method, rule, factor, granularity.name, granularity.group)
        assert torch.equal(ops.ternary_unpack(w_packed, None, w.shape[1], torch.int8), codes), name
        assert got.dtype == torch.float32
        assert got.shape == scale.shape
        # Sums are in float64 in some order and rounded once: the last bit of float32 may differ.
        torch.testing.assert_close(got, scale, rtol=2e-7, atol=0, msg=name)


@helpers.each("method", FACTORS)
@helpers.each("rule", RULES)
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_quantize_equals_definition(
    method: str, rule: str, granularity: helpers.Granularity, dtype: torch.dtype
) -> None:
    _assert_quantized(helpers.randn(5, 128, dtype=dtype), method, rule, granularity=granularity)


@helpers.each("method", FACTORS)
@helpers.each("k", [size for size in helpers.EDGE_SIZES if size])
@helpers.each("granularity", [helpers.TENSOR, helpers.CHANNEL], ids=str)
def test_quantize_equals_definition_at_edge_sizes(method: str, k: int, granularity: helpers.Granularity) -> None:
    _assert_quantized(helpers.randn(3, k), method, granularity=granularity)


@helpers.each("method", FACTORS)
@helpers.each("factor", [0.0, 0.1, 0.999, 1.0])
def test_quantize_with_other_thresholds(method: str, factor: float) -> None:
    _assert_quantized(helpers.randn(4, 100), method, factor=factor)


@helpers.each("method", FACTORS)
@helpers.each("seed", range(3))
def test_quantize_with_many_ties(method: str, seed: int) -> None:
    """Weights on a coarse grid: thresholds and cut-offs land on values that occur."""
    w = torch.randint(-4, 5, (20, 24), generator=helpers.seeded(seed)).float() / 4
    _assert_quantized(w, method)
    _assert_quantized(w, method, factor=0.5)


@helpers.each("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
@helpers.each("method", FACTORS)
@helpers.each("granularity", ["tensor", "channel"])
def test_quantize_of_empty_matrix(shape: tuple[int, int], method: str, granularity: str) -> None:
    packed, scale = ops.ternary_quantize(torch.zeros(shape), method, "ls", FACTORS[method], granularity)
    assert packed.shape == (shape[0], (shape[1] + 3) // 4)
    assert scale.shape == ((1,) if granularity == "tensor" else (shape[0],))
    expected = reference.ternary_quantize(torch.zeros(shape), method, "ls", FACTORS[method], granularity)
    assert torch.equal(packed, expected[0])
    assert torch.equal(scale, expected[1])


@helpers.each("method", FACTORS)
@helpers.each("rule", RULES)
def test_quantize_of_zero_rows_has_scale_eps(method: str, rule: str) -> None:
    w = helpers.randn(3, 10)
    w[1] = 0
    codes, scale = _quantize(w, method, rule)
    assert not codes[1].any()
    assert scale[1].item() == EPS
    assert (scale[::2] > 0.1).all()


@pytest.mark.parametrize("method", ["max"])
@pytest.mark.parametrize("rule", ["ls", "rms"])
def test_quantize_that_keeps_nothing_has_scale_eps(method: str, rule: str) -> None:
    codes, scale = _quantize(helpers.randn(3, 10), method, rule, factor=1.0)
    assert not codes.any()
    assert (scale == EPS.item()).all()


@helpers.each("method", FACTORS)
@helpers.each("value", [0.3, -2.0, 1e-38, 3e38, 1e-42])
def test_quantize_of_single_element(method: str, value: float) -> None:
    _assert_quantized(torch.tensor([[value]]), method)


@helpers.each("method", FACTORS)
@helpers.each("rule", RULES)
def test_quantize_of_huge_values_stays_finite(method: str, rule: str) -> None:
    w = helpers.randn(3, 500).sign() * 3e38
    w[:, ::3] /= 7
    _assert_quantized(w, method, rule)
    assert _quantize(w, method, rule)[1].isfinite().all()


@pytest.mark.parametrize("method", FACTORS)
def test_quantize_of_subnormals(method: str) -> None:
    _assert_quantized(helpers.randn(4, 50) * 1e-40, method)


def test_quantize_compares_with_the_threshold_strictly() -> None:
    codes, _ = _quantize(torch.tensor([[1.0, 0.5, -0.5, 0.50001, -0.50001]]), "max", factor=0.5)
    assert codes.tolist() == [[1, 0, 0, 1, -1]]
    codes, _ = _quantize(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), "twn", factor=1.0)
    assert not codes.any()


def test_quantize_compares_with_the_threshold_in_float32() -> None:
    """fl(fl(0.05) * 3) rounds above 0.05 * 3, so a value between is kept in float64 alone, and the other way round."""
    for largest in (3.0, 7.0, 0.3):
        edge = np.float32(0.05) * np.float32(largest)
        row = [largest, edge, np.nextafter(edge, np.float32(1)), -np.nextafter(edge, np.float32(0))]
        codes, _ = _quantize(torch.tensor(np.array([row], dtype=np.float32)), "max")
        assert codes.tolist() == [[1, 0, 1, 0]]


def test_quantize_takes_the_lower_median() -> None:
    # Lower median 2: 0.5 * 2 = 1 drops the ones; the upper median 4 or the mean 3 would drop the 2 or keep less.
    codes, _ = _quantize(torch.tensor([[1.0, 2.0, -4.0, 5.0]]), "absmedian", factor=0.5)
    assert codes.tolist() == [[0, 1, -1, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_absmean_codes_equal_bitnet_rounding(seed: int) -> None:
    """The published formula, whose mean is a float32 sum: codes agree wherever the means do not differ in a way that
    matters, which these seeds do not."""
    w = helpers.randn(33, 129, seed=seed) * 0.02
    codes, _ = _quantize(w, "absmean", "mean", granularity=helpers.TENSOR)
    bitnet = (w * (1.0 / w.abs().mean().clamp(min=1e-5))).round().clamp(-1, 1)
    assert torch.equal(codes.float(), bitnet)


def test_absmean_rounds_half_to_even() -> None:
    codes, scale = _quantize(torch.tensor([[0.5, -0.5, 1.5, 1.5]]), "absmean", "mean")
    assert codes.tolist() == [[0, 0, 1, 1]]
    assert scale.tolist() == [1.0]


@helpers.each("seed", range(5))
@helpers.each("per_channel", [True, False])
def test_scale_max_reproduces_the_classic_rule_bit_for_bit(seed: int, per_channel: bool) -> None:
    w = helpers.randn(17, 130, seed=seed)
    codes, scale = _quantize(w, "max", "max", granularity=helpers.CHANNEL if per_channel else helpers.TENSOR)
    largest = w.abs().amax(1) if per_channel else w.abs().amax().reshape(1)
    classic = w.sign() * (w.abs() > (0.05 * largest)[:, None])
    assert torch.equal(codes.float(), classic)
    assert torch.equal(scale, largest)


@pytest.mark.parametrize("method", FACTORS)
def test_least_squares_scale_has_the_least_error(method: str) -> None:
    w = helpers.randn(6, 200)
    codes, scale = _quantize(w, method)
    best = (codes.double() * w.double()).sum(1) / codes.double().square().sum(1)
    torch.testing.assert_close(scale.double(), best, rtol=1e-6, atol=0)


@helpers.each("method", FACTORS)
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
@helpers.each("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_rms_keeps_the_norm_of_what_shares_a_scale(
    method: str, granularity: helpers.Granularity, dtype: torch.dtype
) -> None:
    w = helpers.randn(5, 128, dtype=dtype)
    codes, scale = _quantize(w, method, "rms", granularity=granularity)
    width = {"tensor": w.numel(), "channel": 128}.get(granularity.name, granularity.group)
    norms = (m.double().reshape(-1, width).norm(dim=1) for m in (helpers.dense(codes, scale), w))
    torch.testing.assert_close(*norms, rtol=1e-7, atol=0)


@helpers.each("value", [1e30, 3e38, 1e-30, 1e-40])
@helpers.each("dtype", [torch.float32, torch.bfloat16], ids=helpers.dtype_id)
def test_rms_of_squares_beyond_float32(value: float, dtype: torch.dtype) -> None:
    w = torch.tensor([[value, -value, value, 0.0, -value]]).to(dtype)
    codes, scale = _quantize(w, "max", "rms")
    assert codes.tolist() == [[1, -1, 1, 0, -1]]
    assert scale.item() == w[0, 0].item()


@pytest.mark.parametrize("dtype", helpers.FLOATS, ids=helpers.dtype_id)
def test_rms_is_no_more_than_the_dtype_holds(dtype: torch.dtype) -> None:
    """Three of four are kept, so the norm wants 1.15 times the largest number."""
    largest = torch.finfo(dtype).max
    w = torch.full((2, 64), largest, dtype=dtype)
    w[1] /= 2
    _assert_quantized(w, "nm34", "rms")
    codes, scale = _quantize(w, "nm34", "rms")
    assert scale[0].item() == largest
    assert scale[1].item() == pytest.approx(largest / 2 * (4 / 3) ** 0.5, rel=1e-6)
    assert ops.ternary_unpack(ops.ternary_pack(codes), scale, 64, dtype).isfinite().all()


def test_optimal_has_the_least_error_of_all_methods() -> None:
    w = helpers.randn(20, 300)

    def error(method: str) -> Tensor:
        codes, scale = _quantize(w, method)
        return (w.double() - helpers.dense(codes, scale)).square().sum(1)

    least = error("optimal")
    assert all((least <= error(method) * (1 + 1e-9)).all() for method in FACTORS)


def test_group_of_the_whole_row_has_the_shape_of_channel() -> None:
    w = helpers.randn(3, 16)
    by_group = ops.ternary_quantize(w, "max", "ls", 0.05, "group", 16)
    by_row = ops.ternary_quantize(w, "max", "ls", 0.05, "channel")
    assert by_group[1].shape == (3,)
    assert all(torch.equal(a, b) for a, b in zip(by_group, by_row, strict=True))


@helpers.each("value", [float("nan"), float("inf"), float("-inf")])
@helpers.each("method", FACTORS)
@helpers.each("rule", RULES)
def test_quantize_of_non_finite_group_has_codes_0_and_scale_nan(value: float, method: str, rule: str) -> None:
    w = helpers.randn(3, 12)
    clean, clean_scale = _quantize(w, method, rule, granularity=helpers.Granularity("group", 4))
    w[1, 6] = value
    codes, scale = _quantize(w, method, rule, granularity=helpers.Granularity("group", 4))
    assert scale.isnan().tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert not codes[1, 4:8].any()
    same = torch.ones(3, 12, dtype=torch.bool)
    same[1, 4:8] = False
    assert torch.equal(codes[same], clean[same])
    assert torch.equal(scale[~scale.isnan()], clean_scale[~scale.isnan()])


@helpers.each("layout", helpers.LAYOUTS)
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
def test_quantize_of_layout_equals_contiguous(layout: str, granularity: helpers.Granularity) -> None:
    w = helpers.randn(7, 64)
    for actual, expected in zip(
        _quantize(helpers.LAYOUTS[layout](w), "twn", granularity=granularity),
        _quantize(w, "twn", granularity=granularity),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@helpers.each("method", ["max", "optimal"])
@helpers.each("granularity", helpers.GRANULARITIES, ids=str)
def test_quantize_with_two_threads_equals_one(method: str, granularity: helpers.Granularity) -> None:
    w = helpers.randn(200, 512)
    with helpers.threads(1):
        one = _quantize(w, method, granularity=granularity)
    with helpers.threads(2):
        two = _quantize(w, method, granularity=granularity)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@helpers.once
@helpers.each(
    ("args", "message"),
    [
        (
            ("mode", "ls", 0.05, "channel", 0),
            "method must be one of max, twn, absmean, absmedian, optimal, nm34, got 'mode'",
        ),
        (("max", "l2", 0.05, "channel", 0), "scale must be one of ls, mean, max, rms, got 'l2'"),
        (("max", "ls", 0.05, "row", 0), "granularity must be one of tensor, channel, group, got 'row'"),
        (("max", "ls", 1.5, "channel", 0), r"threshold_factor must be in \[0, 1\], got 1.5"),
        (("max", "ls", -0.1, "channel", 0), r"threshold_factor must be in \[0, 1\], got -0.1"),
        (("max", "ls", float("nan"), "channel", 0), "threshold_factor must be in"),
        (("max", "ls", 0.05, "group", 6), "group_size must be a positive multiple of 4, got 6"),
        (("max", "ls", 0.05, "group", 0), "group_size must be a positive multiple of 4, got 0"),
        (("max", "ls", 0.05, "group", -4), "group_size must be a positive multiple of 4, got -4"),
        (("max", "ls", 0.05, "group", 8), "group_size=8 and in_features=12"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_quantize_refuses_bad_arguments(args: tuple[str, str, float, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.ternary_quantize(torch.ones(2, 12), *args)


@helpers.once
@pytest.mark.parametrize("shape", [(4,), (2, 2, 4), ()], ids=str)
def test_quantize_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"w must be \(out_features, in_features\), got"):
        ops.ternary_quantize(torch.ones(shape), "max", "ls", 0.05, "channel")


@helpers.once
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int64], ids=helpers.dtype_id)
def test_quantize_refuses_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="w must be float32, float16"):
        ops.ternary_quantize(torch.ones(2, 4).to(dtype), "max", "ls", 0.05, "channel")


@helpers.once
def test_quantize_carries_no_gradient() -> None:
    w = helpers.randn(2, 4).requires_grad_()
    assert not any(out.requires_grad for out in ops.ternary_quantize(w, "max", "ls", 0.05, "channel"))


@helpers.once
@pytest.mark.parametrize("granularity", [*helpers.GRANULARITIES, helpers.Granularity("group", 128)], ids=str)
def test_quantize_passes_opcheck(granularity: helpers.Granularity) -> None:
    args = (helpers.randn(3, 128), "max", "ls", 0.05, granularity.name, granularity.group)
    torch.library.opcheck(torch.ops.bittorch.ternary_quantize.default, args)
