"""Trit depth: a weight as several ternary planes, the digits of an integer in balanced ternary.

A float weight needs no training to become ternary this way, only more planes: each is one more digit.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from bittorch.quant.ternary import Granularity, TernaryQuantConfig, check_finite

MAX_DEPTH = 6
_CHUNK = 1 << 22  # weights whose float64 quotients are in memory at once


def check_depth(depth: object) -> int:
    """``depth`` as an int; raises TypeError where it is none, ValueError where it is out of range."""
    if isinstance(depth, bool) or not isinstance(depth, Integral):
        raise TypeError(f"depth must be an integer from 1 to {MAX_DEPTH}, got {depth!r}")
    if not 1 <= int(depth) <= MAX_DEPTH:
        raise ValueError(f"depth must be from 1 to {MAX_DEPTH}, got {depth}")
    return int(depth)


def check_grid(config: TernaryQuantConfig) -> None:
    """Raises ValueError where ``config`` sets what an absmax grid has not: a method, a threshold, a gradient."""
    plain = TernaryQuantConfig()
    names = ("method", "scale", "threshold_factor", "ste")
    if said := [name for name in names if getattr(config, name) != getattr(plain, name)]:
        given, own = (", ".join(f"{name}={getattr(of, name)!r}" for name in said) for of in (config, plain))
        raise ValueError(
            f"depth rounds to a grid of the largest magnitude and trains nothing, so {given} says nothing to it (left "
            f"alone: {own}); give granularity, group_size and activation_bits alone"
        )


def largest_integer(depth: int) -> int:
    """``(3^depth - 1) / 2``, all digits +1."""
    return (3**depth - 1) // 2


def _scales(weight: Tensor, depth: int, granularity: Granularity, group_size: int) -> Tensor:
    n, k = weight.shape
    shape = reference.scale_shape(n, k, granularity, group_size)
    if weight.numel() == 0:
        return weight.new_full(shape, reference.EPS, dtype=torch.float32)
    width = {"tensor": n * k, "channel": k, "group": group_size}[granularity]
    absmax = weight.reshape(-1, width).abs().amax(1).double()
    # By a tensor: CUDA divides by a number as a product with its reciprocal, which rounds twice.
    scale = (absmax / torch.full_like(absmax, largest_integer(depth))).float().view(shape)
    if not bool(torch.isfinite(scale).all()) and bool(torch.isfinite(weight).all()):
        raise ValueError(f"w must have float32 scales, got magnitudes up to {float(absmax.max()):g}")
    check_finite(weight, scale)
    return torch.where(scale > 0, scale, reference.EPS)  # zeros, and what float32 cannot scale, have digits 0


def _rows_of(scale: Tensor, n: int, k: int) -> Tensor:
    """float64 ``(n, 1)`` or ``(n, groups, 1)``: what divides a row that is cut into its groups."""
    return (scale.expand(n) if scale.dim() == 1 else scale).double().unsqueeze(-1)


def _by_group(rows: Tensor, step: Tensor) -> Tensor:
    """``rows`` cut into the groups of `_rows_of`."""
    return rows.unflatten(1, (step.shape[1], -1)) if step.dim() == 3 else rows


def grid_integers(
    weight: Tensor, depth: int, granularity: Granularity = "channel", group_size: int = 128
) -> tuple[Tensor, Tensor]:
    """``q`` of `trit_planes` as float32 of the shape of ``weight``, and the scale; Args and Raises as there."""
    depth = check_depth(depth)
    if not weight.is_floating_point():
        raise TypeError(f"w must be floating, got {weight.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"w must be (out_features, in_features), got shape {tuple(weight.shape)}")
    n, k = weight.shape
    TernaryQuantConfig(
        granularity=granularity, group_size=group_size if granularity == "group" else None
    ).check_in_features(k)
    weight, largest = weight.detach(), largest_integer(depth)
    scale = _scales(weight, depth, granularity, group_size)
    q = torch.empty((n, k), dtype=torch.float32, device=weight.device)
    steps, rows = _rows_of(scale, n, k), max(1, _CHUNK // max(1, k))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        quotient = _by_group(weight[part].double(), steps[part]) / steps[part]
        q[part] = quotient.round_().clamp_(-largest, largest).flatten(1)
    return q, scale


def from_grid(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``q * scale`` in ``dtype``, computed in float64."""
    step = _rows_of(scale, *q.shape)
    return (_by_group(q.double(), step) * step).flatten(1).to(dtype)


def trit_planes(
    weight: Tensor, depth: int, granularity: Granularity = "channel", group_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Digits and scale of ``weight``, about ``scale * sum_i 3^i planes[i]``.

    ``scale = fl32(absmax / ((3^depth - 1) / 2))``, the quotient in float64; ``q = rint(weight / scale)``, half to even,
    clamped to ``(3^depth - 1) / 2``; ``planes`` are the balanced ternary digits of ``q``. An error is at most half a
    scale: the grid ends at the largest magnitude, so that no outlier is clipped.

    Args:
        weight: ``(out_features, in_features)``, floating.
        depth: planes, 1 to 6.
        granularity: what shares a scale: ``tensor``, ``channel`` or ``group``.
        group_size: columns of a group, a multiple of 4 that divides in_features; used with granularity ``group``.

    Returns:
        int8 digits ``(depth, out_features, in_features)``, the lowest first, and the float32 scale, ``(1,)``,
        ``(out_features,)`` or ``(out_features, in_features / group_size)``. Zeros have scale 1e-5.

    Raises:
        TypeError: a depth that is not an integer, a weight that is not floating.
        ValueError: a depth out of range, another number of dimensions, NaN or Inf, groups that do not divide a row.
    """
    q, scale = grid_integers(weight, depth, granularity, group_size)
    return _digits(q, int(depth)), scale


def _digits(q: Tensor, depth: int) -> Tensor:
    """The balanced ternary digits of integers."""
    planes = torch.empty((depth, *q.shape), dtype=torch.int8, device=q.device)
    for plane in planes:
        rest = (q / 3).round()  # the fraction is 0 or a third, far from a half
        plane.copy_(q - 3 * rest)
        q = rest
    return planes


def from_trit_planes(planes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``scale * sum_i 3^i planes[i]`` in ``dtype``, the inverse of `trit_planes`; computed in float64."""
    powers = 3.0 ** torch.arange(len(planes), dtype=torch.float32, device=planes.device)
    return from_grid(torch.tensordot(powers, planes.float(), 1), scale, dtype)


def pack_trit_planes(
    weight: Tensor, depth: int, granularity: Granularity = "channel", group_size: int = 128
) -> tuple[Tensor, Tensor]:
    """`trit_planes` as one packed matrix whose rows are those of all planes, the lowest plane first.

    Row ``i * out_features + r`` holds digit ``i`` of row ``r``, and has the scale ``fl32(3^i * scale)``: one product
    with this matrix gives every plane's share.

    Args and Raises: as `trit_planes`.

    Returns:
        uint8 ``(depth * out_features, ceil(in_features / 4))`` and the float32 scale, ``(depth * out_features,)`` or
        ``(depth * out_features, groups)``. One scale for the tensor stands in each row; at depth 1 it stays ``(1,)``.
    """
    return pack_grid(*grid_integers(weight, depth, granularity, group_size), int(depth))


def pack_grid(q: Tensor, scale: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """`pack_trit_planes` of integers and a scale that are chosen already, as `grid_integers` gives them."""
    w_packed = ops.ternary_pack(_digits(q, depth).flatten(0, 1))
    if depth == 1:
        return w_packed, scale
    scale = scale.expand(len(q)) if scale.dim() == 1 else scale
    powers = 3.0 ** torch.arange(depth, dtype=torch.float64, device=scale.device)
    return w_packed, (powers.view(-1, *[1] * scale.dim()) * scale.double()).float().flatten(0, 1)


def check_plane_scales(scale: Tensor, depth: int, name: str = "scale") -> None:
    """Raises ValueError where planes of `pack_trit_planes` have another scale than ``3^i`` times the lowest one's.

    Products take the planes together, with that scale alone. What float32 rounds is no difference.
    """
    if depth == 1 or scale.numel() == 0:
        return
    planes = scale.detach().double().unflatten(0, (depth, -1)).flatten(1)
    expected = 3.0 ** torch.arange(depth, dtype=torch.float64, device=scale.device)[:, None] * planes[:1]
    wrong = torch.nonzero((planes - expected).abs() > 2.0**-20 * expected.abs())
    if len(wrong):
        plane, at = wrong[0].tolist()
        raise ValueError(
            f"{name} of plane {plane} must be 3^{plane} times that of the lowest plane, {expected[plane, at]:g}, got "
            f"{planes[plane, at]:g}; planes with scales of their own are layers of depth 1, whose results are added"
        )


def unpack_trit_planes(
    w_packed: Tensor, scale: Tensor, depth: int, in_features: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The dense weight ``(out_features, in_features)`` of `pack_trit_planes`, summed in float64 and rounded once."""
    n = len(w_packed) // depth
    dense = torch.zeros((n, in_features), dtype=torch.float64, device=w_packed.device)
    for i in range(depth):
        rows = slice(i * n, (i + 1) * n) if len(scale) == len(w_packed) else slice(None)  # or one scale for all
        dense += ops.ternary_unpack(w_packed[i * n : (i + 1) * n], scale[rows], in_features, torch.float32)
    return dense.to(dtype)
