"""Rounding to a grid that looks at activations: the error of a column is made up for by the columns after it.

With ``H = sum_x x x^T`` over the activations that a layer gets, the outputs of a row of weights w change by
``(w - s q) H (w - s q)^T``, summed over tokens, where rounding to nearest knows ``|w - s q|^2`` alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch.ops import reference
from bittorch.quant.ternary import Granularity
from bittorch.quant.trit_planes import check_depth, from_grid, grid_integers, largest_integer

DAMPING = 0.01
ROUNDS = 3
_NUMBERS = 1 << 22  # float64 in a tensor: rows of a weight are taken so many at once
_BLOCK = 64  # columns whose errors reach the columns after them in one product
_FACTORS = 29  # of the largest magnitude, from 1 down to 0.3: what a grid may end at


def compensated_integers(
    weight: Tensor,
    hessian: Tensor,
    depth: int,
    granularity: Granularity = "channel",
    group_size: int = 128,
    *,
    damping: float = DAMPING,
    search: bool = True,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Tensor]:
    """Integers and scales as of `bittorch.quant.trit_planes`, chosen for ``e = (w - s q) H (w - s q)^T`` of each row.

    Columns are rounded one by one, ``q_j = rint(w_j / s)``, those of the largest ``H_jj`` first within groups that are
    ordered alike; then ``w_i -= (w_j - s q_j) U_ji / U_jj`` for the columns i that are left, with U the upper Cholesky
    factor of the inverse of ``H + damping * mean(diag H) I``. The scale of a group is chosen when its first column is
    due: the largest magnitude over ``(3^depth - 1) / 2``, or with ``search`` the best of 29 multiples of it from 1 down
    to 0.3, by the squared errors of rounding to nearest, each weighted with ``1 / U_jj^2``. Each of ``rounds`` then
    takes the scales that minimise e for these integers, and after them the integer of one column after the other that
    minimises e for all others. A row whose e is not below that of rounding to nearest is rounded to nearest. Columns
    that no activation reaches are rounded to nearest; all is float64.

    Args:
        weight: ``(out_features, in_features)``, floating.
        hessian: ``(in_features, in_features)``, symmetric, of any scale; singular where there were few tokens.
        depth: planes, 1 to 6.
        granularity: ``channel`` for one scale per row, or ``group``.
        group_size: columns of a group.
        damping: relative to the mean diagonal of ``hessian``; above 0.
        search: choose scales by weighted errors.
        rounds: of refinement; 0 leaves the compensated integers as they are.

    Returns:
        float32 integers of the shape of ``weight``, and the float32 scale, ``(out_features,)`` or
        ``(out_features, groups)``.

    Raises:
        TypeError, ValueError: as `bittorch.quant.trit_planes`; a scale for the whole tensor; a Hessian of another
            shape, with NaN or Inf, or that is no sum of x x^T; damping that is not above 0, or too little; rounds below
            0.

    Source:
        GPTQ, arXiv:2210.17323, for the compensation; QuantEase, arXiv:2309.01885, for one column after the other.
    """
    check_depth(depth)
    check_granularity(granularity)
    check_numbers(damping, rounds)
    nearest, scale = grid_integers(weight, depth, granularity, group_size)  # its checks, and what a row must not exceed
    n, k = weight.shape
    _check_hessian(hessian, k)
    if not n or not k:
        return nearest, scale
    width = group_size if granularity == "group" else k
    grid = CompensatedGrid(hessian.to(weight.device), width, damping=damping, search=search, rounds=rounds)
    q, steps = grid.integers(weight, largest_integer(depth), nearest, scale.view(n, -1))
    return q, steps.view_as(scale)


def check_granularity(granularity: Granularity) -> None:
    """Raises ValueError for one scale for the whole tensor."""
    if granularity == "tensor":
        raise ValueError("calibrated scales are those of rows or groups; take granularity channel or group, not tensor")


def check_numbers(damping: object, rounds: object) -> None:
    """Raises ValueError where a number of `compensated_integers` is none, or out of range."""
    if not isinstance(damping, int | float) or not 0 < damping < float("inf"):
        raise ValueError(f"damping must be above 0, got {damping!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds must be an integer of at least 0, got {rounds!r}")


def _check_hessian(hessian: Tensor, columns: int) -> None:
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian must be ({columns}, {columns}) for such a weight, got {tuple(hessian.shape)}")
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("hessian must be finite, got NaN or Inf")
    if bool((hessian.diagonal() < 0).any()):
        raise ValueError("hessian must be a sum of x x^T, got a negative diagonal")


class CompensatedGrid:
    """What the rows of a weight share: the order of columns, and the factor of their inverse Hessian.

    Args:
        hessian, damping, search, rounds: as of `compensated_integers`, checked.
        width: columns that share a scale.
    """

    def __init__(self, hessian: Tensor, width: int, *, damping: float, search: bool, rounds: int) -> None:
        self.raw, self.width, self.search, self.rounds = hessian.double(), width, search, rounds
        mean = self.raw.diagonal().mean()
        scaled = self.raw / mean if mean > 0 else torch.zeros_like(self.raw)
        weights = scaled.diagonal().view(-1, width)
        groups = weights.sum(1).argsort(descending=True, stable=True)
        inside = weights.argsort(dim=1, descending=True, stable=True)
        self.order = (inside + width * torch.arange(len(weights), device=inside.device)[:, None])[groups].flatten()
        self.back, self.group_back = self.order.argsort(), groups.argsort()
        damped = scaled.clone()
        damped.diagonal().add_(damping if mean > 0 else 1.0)
        self.hessian = damped[self.order][:, self.order]
        lower, failed = torch.linalg.cholesky_ex(self.hessian)
        if int(failed):
            raise ValueError(f"hessian is not a sum of x x^T, or damping={damping!r} is too little for it; give more")
        inverse = torch.cholesky_inverse(lower)
        self.factor = torch.linalg.cholesky(inverse, upper=True)

    def integers(self, weight: Tensor, largest: int, nearest: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``weight``, with magnitudes up to ``largest``.

        Args:
            weight: ``(n, k)``, floating.
            largest: of the integers.
            nearest, scale: float32 ``(n, k)`` and ``(n, groups)``, what rounding to nearest gives.

        Returns:
            As `compensated_integers`; the scales ``(n, groups)``.
        """
        q, steps = torch.empty_like(nearest), torch.empty_like(scale)
        rows = max(1, _NUMBERS // max(weight.shape[1], scale.shape[1] ** 2))
        for first in range(0, len(weight), rows):
            part = slice(first, first + rows)
            w = weight[part].detach().double()
            found, found_scale = self._chosen(w.T[self.order], largest)
            own, own_scale = found[self.back].T, found_scale[self.group_back].T
            other, other_scale = nearest[part].double(), scale[part].double()
            worse = self._error(w, own, own_scale) > self._error(w, other, other_scale)
            q[part] = torch.where(worse, other, own).float()
            steps[part] = torch.where(worse, other_scale, own_scale).float()
        return q, steps

    def _error(self, w: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        difference = w - from_grid(q, scale, torch.float64)
        return ((difference @ self.raw) * difference).sum(1, keepdim=True)

    # From here on columns are in the order of `order` and stand in rows, one behind the other in memory: ``w`` and
    # ``q`` are (k, n), scales (groups, n).

    def _chosen(self, w: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        q, scale = self._rounded(w, largest)
        pull = self.hessian @ w
        for _ in range(self.rounds):
            scale = self._fitted(pull, q, scale)
            self._descend(pull, q, scale, largest)
        return q, scale

    def _rounded(self, w: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        """Column after column, the error of each taken over by those after it."""
        w, u = w.clone(), self.factor
        q, scales = torch.empty_like(w), []
        for group in range(0, len(w), self.width):
            scale = self._scale(w, group, largest)
            scales.append(scale)
            for begin in range(group, group + self.width, _BLOCK):
                end = min(begin + _BLOCK, group + self.width)
                errors = torch.empty_like(w[begin:end])
                for j in range(begin, end):
                    torch.div(w[j], scale, out=q[j]).round_().clamp_(-largest, largest)
                    torch.addcmul(w[j], q[j], scale, value=-1, out=errors[j - begin]).div_(u[j, j])
                    w[j + 1 : end].addr_(u[j, j + 1 : end], errors[j - begin], alpha=-1)
                w[end:].addmm_(u[begin:end, end:].T, errors, alpha=-1)
        return q, torch.stack(scales)

    def _scale(self, w: Tensor, first: int, largest: int) -> Tensor:
        """Of the group whose first column is ``first``, ``(n,)``."""
        group = w[first : first + self.width]
        top = group.abs().amax(0) / largest
        best = self._fl32(top)
        if not self.search:
            return best
        weights = self.factor.diagonal()[first : first + self.width, None] ** -2
        least = self._nearest_error(group, best, weights, largest)
        for factor in torch.linspace(1, 0.3, _FACTORS).tolist()[1:]:
            scale = self._fl32(top * factor)
            error = self._nearest_error(group, scale, weights, largest)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return best

    @staticmethod
    def _fl32(scale: Tensor) -> Tensor:
        """As the layer holds it: rounded to float32, and above 0."""
        scale = scale.float()
        return torch.where(scale > 0, scale, reference.EPS).double()

    @staticmethod
    def _nearest_error(group: Tensor, scale: Tensor, weights: Tensor, largest: int) -> Tensor:
        nearest = (group / scale).round_().clamp_(-largest, largest).mul_(scale)
        return nearest.sub_(group).square_().mul_(weights).sum(0)

    def _fitted(self, pull: Tensor, q: Tensor, scale: Tensor) -> Tensor:
        """The scales that minimise the error for these integers; a row keeps its own where one would not be above 0.

        ``pull`` is ``H w``.
        """
        groups, n = scale.shape
        system = torch.empty((groups, groups, n), dtype=q.dtype, device=q.device)
        for i in range(groups):
            begin, end = i * self.width, (i + 1) * self.width
            share = (self.hessian[begin:, begin:end] @ q[begin:end]).mul_(q[begin:])
            system[i, i:] = system[i:, i] = share.unflatten(0, (groups - i, -1)).sum(1)
        wanted = (pull * q).unflatten(0, (groups, -1)).sum(1)
        # A group of zeros has no equation; the ridge leaves it its scale, and moves others by 1e-9 of the way there.
        diagonal = system.diagonal(dim1=0, dim2=1)
        ridge = 1e-9 * diagonal.amax(1).clamp(min=1e-30)
        diagonal.add_(ridge[:, None])
        found = torch.linalg.solve(system.permute(2, 0, 1), (wanted + ridge * scale).T).float().double().T
        usable = (torch.isfinite(found) & (found > 0)).all(0)
        return torch.where(usable, found, scale)

    def _descend(self, pull: Tensor, q: Tensor, scale: Tensor, largest: int) -> None:
        """Moves each integer in turn to where the error is least for all others; ``pull`` is ``H w``."""
        h, steps = self.hessian, scale.repeat_interleave(self.width, 0)
        pull = torch.addmm(pull, h, q * steps, alpha=-1)
        inverse = 1 / (h.diagonal()[:, None] * steps)
        for begin in range(0, len(q), _BLOCK):
            end = min(begin + _BLOCK, len(q))
            own, moved = pull[begin:end].clone(), torch.empty_like(pull[begin:end])
            for j in range(begin, end):
                better = torch.addcmul(q[j], own[j - begin], inverse[j]).round_().clamp_(-largest, largest)
                torch.mul(better - q[j], steps[j], out=moved[j - begin])
                q[j] = better
                own[j + 1 - begin :].addr_(h[j, j + 1 : end], moved[j - begin], alpha=-1)
            pull[end:].addmm_(h[end:, begin:end], moved, alpha=-1)
