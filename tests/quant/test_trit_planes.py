import importlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bittorch import quant
from tests import helpers

module = importlib.import_module("bittorch.quant.trit_planes")  # the package has the function under this name
GRANULARITIES = helpers.GRANULARITIES
DEPTHS = range(1, 7)


def _planes(weight: torch.Tensor, depth: int, of: helpers.Granularity) -> tuple[torch.Tensor, torch.Tensor]:
    return quant.trit_planes(weight, depth, of.name, of.group or 128)


def _integers(planes: torch.Tensor) -> torch.Tensor:
    return sum(3**i * plane.long() for i, plane in enumerate(planes))


@pytest.mark.parametrize("depth", DEPTHS)
def test_digits_of_every_integer_by_hand_rule(depth: int) -> None:
    """Integers on the grid come back, and their digits are those that long division gives."""
    largest = (3**depth - 1) // 2
    values = torch.arange(-largest, largest + 1)
    planes, scale = quant.trit_planes(values[None].float(), depth)
    assert scale.tolist() == [1.0]
    assert planes.dtype == torch.int8
    for value, digits in zip(values.tolist(), planes[:, 0].T.tolist(), strict=True):
        expected = []
        for _ in range(depth):
            digit = {0: 0, 1: 1, 2: -1}[value % 3]
            expected.append(digit)
            value = (value - digit) // 3
        assert digits == expected
        assert value == 0


def test_frozen_digits() -> None:
    planes, scale = quant.trit_planes(torch.tensor([[13.0, -13.0, 5.0, -7.0, 0.0, 2.0]]), 3)
    assert planes[:, 0].tolist() == [[1, -1, -1, -1, 0, -1], [1, -1, -1, 1, 0, 1], [1, -1, 1, -1, 0, 0]]
    assert scale.tolist() == [1.0]


def test_golden_bytes() -> None:
    packed, scale = quant.pack_trit_planes(torch.tensor([[2.0, -1.5, 0.5, -1.0]]), 2)
    assert packed.tolist() == [[0x51], [0x89]]
    assert scale.tolist() == [0.5, 1.5]


@helpers.each("depth", DEPTHS)
@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("dtype", [*helpers.FLOATS, torch.float64], ids=helpers.dtype_id)
def test_scale_and_integers_against_float64(depth: int, granularity: helpers.Granularity, dtype: torch.dtype) -> None:
    weight = helpers.randn(7, 128, seed=depth, dtype=dtype)
    weight[3] = 0
    planes, scale = _planes(weight, depth, granularity)
    assert (scale.dtype, scale.shape) == (torch.float32, granularity.scale_shape(7, 128))
    largest = (3**depth - 1) // 2
    groups = {"tensor": weight.reshape(1, -1), "channel": weight}.get(granularity.name)
    groups = weight.reshape(-1, granularity.group) if groups is None else groups
    absmax = groups.double().abs().amax(1)
    expected = torch.where(absmax > 0, absmax / largest, 1e-5).float()
    assert torch.equal(scale.flatten(), expected)
    step = helpers.expand_scale(scale, 7, 128)
    assert torch.equal(_integers(planes), (weight.double() / step).round().clamp(-largest, largest).long())
    back = quant.from_trit_planes(planes, scale, torch.float64)
    assert torch.equal(back, _integers(planes) * step)
    assert bool(((back - weight.double()).abs() <= step * (0.5 + largest * 2e-7)).all())


def test_ties_round_half_to_even() -> None:
    planes, _ = quant.trit_planes(torch.tensor([[13.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]), 3)
    assert _integers(planes).tolist() == [[13, 0, 2, 2, 0, -2, -2]]


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12),
    st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_any_row_comes_back_within_half_a_step(row: list[float], depth: int) -> None:
    planes, scale = quant.trit_planes(torch.tensor([row], dtype=torch.float32), depth)
    assert set(planes.unique().tolist()) <= {-1, 0, 1}
    step = Fraction(scale.item())
    absmax = max(abs(Fraction(v)) for v in row)
    slack = absmax * Fraction(1, 1 << 22) + Fraction(2) ** -149 * 364
    for value, q in zip(row, _integers(planes)[0].tolist(), strict=True):
        assert abs(Fraction(value) - q * step) <= step / 2 + slack


def test_error_falls_with_depth() -> None:
    weight = helpers.randn(64, 256)
    errors = [
        helpers.relative_l2(quant.from_trit_planes(*quant.trit_planes(weight, depth)), weight) for depth in DEPTHS
    ]
    assert all(later < earlier / 2.5 for earlier, later in itertools.pairwise(errors))


@helpers.each("depth", DEPTHS)
@helpers.each("granularity", GRANULARITIES, ids=str)
@helpers.each("columns", [64, 192])
def test_packed_rows_are_the_planes(depth: int, granularity: helpers.Granularity, columns: int) -> None:
    weight = helpers.randn(5, columns)
    planes, scale = _planes(weight, depth, granularity)
    packed, scales = quant.pack_trit_planes(weight, depth, granularity.name, granularity.group or 128)
    assert torch.equal(packed, torch.cat([helpers.pack(plane) for plane in planes]))
    assert scales.dtype == torch.float32
    if depth == 1:
        helpers.assert_same_bits(scales, scale)
        return
    rows = scale.expand(5) if granularity.name == "tensor" else scale
    for i, part in enumerate(scales.view(depth, *rows.shape)):
        helpers.assert_same_bits(part, (3**i * rows.double()).float())
    dense = quant.unpack_trit_planes(packed, scales, depth, columns, torch.float64)
    helpers.assert_near(dense, quant.from_trit_planes(planes, scale, torch.float64), 1e-7)


def test_rows_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = helpers.randn(37, 24)
    for granularity in ("tensor", "channel", "group"):
        whole = quant.trit_planes(weight, 3, granularity, 8)
        monkeypatch.setattr(module, "_CHUNK", 100)
        for a, b in zip(whole, quant.trit_planes(weight, 3, granularity, 8), strict=True):
            assert torch.equal(a, b)
        monkeypatch.undo()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_empty_weights(shape: tuple[int, int], granularity: str) -> None:
    planes, scale = quant.trit_planes(torch.zeros(shape), 2, granularity, 4)
    assert planes.shape == (2, *shape)
    assert quant.from_trit_planes(planes, scale).shape == shape
    packed, _ = quant.pack_trit_planes(torch.zeros(shape), 2, granularity, 4)
    assert packed.shape == (2 * shape[0], -(-shape[1] // 4))


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 3e38])
def test_extreme_magnitudes_stay_finite(magnitude: float) -> None:
    for depth in DEPTHS:
        planes, scale = quant.trit_planes(torch.tensor([[magnitude, -magnitude]]), depth)
        packed, scales = quant.pack_trit_planes(torch.tensor([[magnitude, -magnitude]]), depth)
        dense = quant.unpack_trit_planes(packed, scales, depth, 2, torch.float64)
        assert bool(torch.isfinite(dense).all())
        assert torch.equal(planes[:, 0, 0], -planes[:, 0, 1])
        assert abs(float(dense[0, 0]) - magnitude) <= max(1e-43, 1e-6 * magnitude)
        assert scale.item() > 0


def test_integers_end_where_the_digits_do() -> None:
    """A subnormal scale may be rounded down so far that the largest weight is 1.5 times the grid."""
    tiny = 2.0**-149
    planes, scale = quant.trit_planes(torch.tensor([[540 * tiny, -540 * tiny, 100 * tiny]], dtype=torch.float64), 6)
    assert scale.item() == tiny
    assert _integers(planes).tolist() == [[364, -364, 100]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_raise(bad: float) -> None:
    weight = torch.zeros(3, 8)
    weight[2, 1] = bad
    for granularity in ("tensor", "channel", "group"):
        with pytest.raises(ValueError, match="w must be finite, got 1 NaN or Inf of 24 values, the first in row 2"):
            quant.trit_planes(weight, 2, granularity, 4)
    with pytest.raises(ValueError, match=r"w must have float32 scales, got magnitudes up to 1e\+300"):
        quant.trit_planes(torch.full((1, 4), 1e300, dtype=torch.float64), 2)


@pytest.mark.parametrize("depth", [0, 7, -1])
def test_depth_out_of_range_raises(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be from 1 to 6, got {depth}"):
        quant.trit_planes(torch.ones(2, 4), depth)


@pytest.mark.parametrize("depth", [True, 2.0, "2", None])
def test_depth_that_is_no_integer_raises(depth: object) -> None:
    with pytest.raises(TypeError, match=f"depth must be an integer from 1 to 6, got {depth!r}"):
        quant.trit_planes(torch.ones(2, 4), depth)


def test_other_bad_arguments_raise() -> None:
    with pytest.raises(ValueError, match="group_size=8 and in_features=12"):
        quant.trit_planes(torch.ones(2, 12), 2, "group", 8)
    with pytest.raises(ValueError, match=r"granularity must be one of .*, got 'row'"):
        quant.trit_planes(torch.ones(2, 12), 2, "row")
    with pytest.raises(TypeError, match=r"w must be floating, got torch\.int8"):
        quant.trit_planes(torch.ones(2, 12, dtype=torch.int8), 2)
    with pytest.raises(ValueError, match=r"got shape \(12,\)"):
        quant.trit_planes(torch.ones(12), 2)
