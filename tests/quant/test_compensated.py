"""Rounding that looks at activations, against the rule written column by column and against rounding to nearest."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bittorch.quant import compensated_integers
from bittorch.quant.trit_planes import from_grid, grid_integers
from tests import helpers

GROUPS = [("channel", 128), ("group", 8), ("group", 12)]


def _inputs(k: int, tokens: int = 200, seed: int = 0) -> Tensor:
    """Correlated activations with columns of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator, dtype=torch.float64)
    size = torch.logspace(-1, 1, k, dtype=torch.float64)[torch.randperm(k, generator=generator)]
    return torch.randn(tokens, k, generator=generator, dtype=torch.float64) @ mix * size


def _error(weight: Tensor, q: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    difference = weight.double() - from_grid(q, scale, torch.float64)
    return ((difference @ hessian) * difference).sum(1)


def _reference(weight: Tensor, hessian: Tensor, largest: int, width: int, damping: float) -> tuple[Tensor, Tensor]:
    """The rule with the inverse of what is left of H at each column, and the scale of the largest magnitude."""
    w, k = weight.double().clone(), weight.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    sizes = hessian.diagonal().view(-1, width)
    order = [
        group * width + int(column)
        for group in sorted(range(k // width), key=lambda g: -float(sizes[g].sum()))
        for column in sorted(range(width), key=lambda c, g=group: -float(sizes[g, c]))
    ]
    q, scale, left = torch.zeros_like(w), torch.zeros(len(w), k // width, dtype=torch.float64), list(order)
    for j in order:
        group = slice(j // width * width, (j // width + 1) * width)
        if len([c for c in left if group.start <= c < group.stop]) == width:
            scale[:, j // width] = (w[:, group].abs().amax(1) / largest).float().double()
        inverse = torch.linalg.inv(damped[left][:, left])
        place = left.index(j)
        q[:, j] = (w[:, j] / scale[:, j // width]).round().clamp(-largest, largest)
        lost = (w[:, j] - q[:, j] * scale[:, j // width]) / inverse[place, place]
        w[:, left] -= lost[:, None] * inverse[place]
        left.remove(j)
    return q, scale


@pytest.mark.parametrize(("granularity", "group_size"), GROUPS)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_identity_is_rounding_to_nearest(depth: int, granularity: str, group_size: int) -> None:
    weight = helpers.randn(5, 24)
    for eye in (torch.eye(24), torch.zeros(24, 24)):  # zeros: no activation reached any column
        found = compensated_integers(weight, eye, depth, granularity, group_size, search=False, rounds=0)
        for one, other in zip(found, grid_integers(weight, depth, granularity, group_size), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("granularity", "group_size"), GROUPS)
@pytest.mark.parametrize(("depth", "largest"), [(2, 4), (3, 13)])
def test_columns_as_the_rule_has_them(depth: int, largest: int, granularity: str, group_size: int) -> None:
    weight, x = helpers.randn(6, 24), _inputs(24)
    hessian, width = x.T @ x, 24 if granularity == "channel" else group_size
    q, scale = compensated_integers(
        weight, hessian, depth, granularity, group_size, search=False, rounds=0, damping=0.02
    )
    expected, steps = _reference(weight, hessian, largest, width, 0.02)
    nearest = _error(weight, *grid_integers(weight, depth, granularity, group_size), hessian)
    better = ((weight - expected * steps.repeat_interleave(width, 1)) @ x.T).square().sum(1) <= nearest
    assert int(better.sum()) >= 5
    assert torch.equal(q[better], expected[better].float())
    torch.testing.assert_close(scale.view(6, -1)[better], steps[better].float(), rtol=1e-6, atol=0)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = helpers.randn(7, 96), _inputs(96)
    whole = compensated_integers(weight, x.T @ x, 2, "group", 48)
    monkeypatch.setattr("bittorch.quant.compensated._BLOCK", 5)
    monkeypatch.setattr("bittorch.quant.compensated._NUMBERS", 200)
    for one, other in zip(compensated_integers(weight, x.T @ x, 2, "group", 48), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("granularity", "group_size"), GROUPS)
@pytest.mark.parametrize(("depth", "most"), [(1, 0.17), (2, 0.23), (3, 0.23)])
def test_error_is_below_that_of_rounding_to_nearest(depth: int, most: float, granularity: str, group_size: int) -> None:
    weight, x = helpers.randn(32, 48), _inputs(48)
    hessian = x.T @ x
    nearest = _error(weight, *grid_integers(weight, depth, granularity, group_size), hessian)
    errors = [
        _error(weight, *compensated_integers(weight, hessian, depth, granularity, group_size, **how), hessian)
        for how in ({"search": False, "rounds": 0}, {"rounds": 0}, {"rounds": 3})
    ]
    for found in errors:
        assert bool((found <= nearest).all())
    sums = [float(found.sum() / nearest.sum()) for found in errors]
    assert sums[2] < min(most, 0.95 * sums[1])
    assert sums[1] < 0.8 * sums[0]


@pytest.mark.parametrize("how", [{"search": False, "rounds": 0}, {}], ids=["compensated", "refined"])
def test_rows_that_would_lose_are_rounded_to_nearest(how: dict[str, Any]) -> None:
    """With few columns there are few to take an error over: some rows come out worse than rounded to nearest."""
    torch.manual_seed(0)
    weight, x = torch.randn(64, 8), torch.randn(100, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    q, scale = compensated_integers(weight, x.T @ x, 2, **how)
    nearest, steps = grid_integers(weight, 2)
    assert 5 < int(((q == nearest).all(1) & (scale == steps)).sum()) < 32
    assert bool((_error(weight, q, scale, x.T @ x) <= _error(weight, nearest, steps, x.T @ x)).all())


def test_scales_minimise_the_error_for_their_integers() -> None:
    weight, x = helpers.randn(4, 24), _inputs(24)
    q, scale = compensated_integers(weight, x.T @ x, 2, "group", 8, rounds=20, damping=1e-6)
    least = _error(weight, q, scale, x.T @ x)
    for row in range(4):
        parts = (q[row].double().view(3, 8, 1) * x.T.reshape(3, 8, -1)).sum(1)  # what each group gives at scale 1
        best = torch.linalg.lstsq(parts.T, (weight[row].double() @ x.T)[:, None]).solution[:, 0]
        own = (best @ parts - weight[row].double() @ x.T).square().sum()
        assert float(least[row]) == pytest.approx(float(own), rel=2e-2)


def test_fewer_tokens_than_columns_and_columns_that_nothing_reaches() -> None:
    weight, x = helpers.randn(6, 48), _inputs(48, tokens=10)
    x[:, 8:16] = 0
    weight[2] = 0
    q, scale = compensated_integers(weight, x.T @ x, 3, "group", 8)
    nearest, steps = grid_integers(weight, 3, "group", 8)
    assert bool(torch.isfinite(scale).all() and (scale > 0).all())
    assert not q[2].any()
    dense, near = from_grid(q, scale), from_grid(nearest, steps)
    assert float((dense - weight)[:, 8:16].norm()) <= 1.2 * float((near - weight)[:, 8:16].norm())
    assert bool((_error(weight, q, scale, x.T @ x) <= _error(weight, nearest, steps, x.T @ x)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_weights(dtype: torch.dtype) -> None:
    weight, x = helpers.randn(4, 16).to(dtype), _inputs(16)
    q, scale = compensated_integers(weight, (x.T @ x).float(), 2)
    assert (q.dtype, scale.dtype, q.shape, scale.shape) == (torch.float32, torch.float32, (4, 16), (4,))
    for one, other in zip(compensated_integers(weight.double(), (x.T @ x).float(), 2), (q, scale), strict=True):
        assert torch.equal(one, other)
    assert compensated_integers(weight[:0], x.T @ x, 2)[0].shape == (0, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hessian": torch.ones(3, 3)}, r"hessian must be \(8, 8\) for such a weight, got \(3, 3\)"),
        ({"hessian": torch.full((8, 8), torch.nan)}, "hessian must be finite"),
        ({"hessian": -torch.eye(8)}, "negative diagonal"),
        (
            {"hessian": 1 - 2 * torch.eye(8).flip(0) + torch.eye(8)},
            r"hessian is not a sum of x x\^T, or damping=0\.01 is too little",
        ),
        ({"damping": 0.0}, "damping must be above 0, got 0"),
        ({"damping": float("nan")}, "damping must be above 0, got nan"),
        ({"rounds": -1}, "rounds must be an integer of at least 0, got -1"),
        ({"granularity": "tensor"}, "granularity channel or group, not tensor"),
        ({"granularity": "group", "group_size": 12}, "group_size must divide in_features"),
        ({"depth": 7}, "depth must be from 1 to 6, got 7"),
        ({"weight": torch.full((2, 8), torch.inf)}, "w must be finite"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compensated_integers(**{"weight": helpers.randn(2, 8), "hessian": torch.eye(8), "depth": 2, **arguments})
