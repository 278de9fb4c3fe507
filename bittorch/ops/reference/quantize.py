"""Quantisers of weights and activations in plain torch, and what stands before those of activations."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_group_size
from bittorch.ops.reference.packed import ternary_pack

EPS = 1e-5


def _optimal_threshold(a: Tensor) -> Tensor:
    """Below the smallest of the k largest that maximise (their sum)^2 / k, row by row."""
    ordered = a.sort(dim=1, descending=True).values
    count = torch.arange(1, a.shape[1] + 1, device=a.device)
    gain = ordered.double().cumsum(1).square() / count
    last_of_ties = torch.ones_like(gain, dtype=torch.bool)
    last_of_ties[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    best = torch.where(last_of_ties, gain, -1.0).argmax(1, keepdim=True)
    return ordered.gather(1, best).nextafter(torch.zeros((), device=a.device))


def _drop_smallest(w: Tensor) -> Tensor:
    """``w`` without the smallest of each four columns, of equal ones the first."""
    k = w.shape[1]
    quads = torch.nn.functional.pad(w, (0, -k % 4)).unflatten(1, (-1, 4))
    a = quads.abs()
    smallest = (a == a.amin(2, keepdim=True)).to(torch.int8).argmax(2, keepdim=True)
    return quads.scatter(2, smallest, 0.0).flatten(1)[:, :k]


def _kept(a: Tensor, mean: Tensor, method: str, f: Tensor) -> Tensor:
    if method == "max":
        return a > f * a.amax(1, keepdim=True)
    if method == "twn":
        return a > f * mean
    if method == "optimal":
        return a > _optimal_threshold(a)
    center = mean if method == "absmean" else a.median(dim=1, keepdim=True).values
    return a * (1.0 / center.clamp(min=EPS)) > f


def _scale_by(rule: str, a: Tensor, mean: Tensor, kept: Tensor, largest: float) -> Tensor:
    """The scale of each row of magnitudes; ``largest`` is what its weights could hold."""
    count = kept.sum(1, keepdim=True)
    if rule == "mean":
        return mean.clamp(min=EPS)
    if rule == "max":
        return a.amax(1, keepdim=True)
    if rule == "ls":
        scale = torch.where(kept, a.double(), 0.0).sum(1, keepdim=True) / count
    else:
        scale = (a.double().square().sum(1, keepdim=True) / count).sqrt().clamp(max=largest)
    return scale.float().where(count > 0, EPS)


def _quantize_rows(
    w: Tensor, left: Tensor | None, method: str, scale_rule: str, threshold_factor: float, largest: float
) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix whose rows are the groups; ``left`` is what nm34 leaves of it."""
    a = w.abs()
    mean = a.double().mean(1, keepdim=True).float()
    f = torch.tensor(threshold_factor, dtype=torch.float32, device=w.device)
    kept = _kept(a, mean, method, f) if left is None else left != 0
    scale = _scale_by(scale_rule, a, mean, kept, largest)
    zero, finite = (a == 0).all(1, keepdim=True), a.isfinite().all(1, keepdim=True)
    scale = scale.where(~zero, EPS).where(finite, torch.nan)
    return (w.sign() * kept).where(finite, 0.0).to(torch.int8), scale[:, 0]


def scale_shape(n: int, k: int, granularity: str, group_size: int) -> tuple[int, ...]:
    """The shape of the scale of an (n, k) matrix; a row of one group has a channel's scale."""
    if granularity == "tensor":
        return (1,)
    if granularity == "group":
        check_group_size(k, group_size)
    return (n,) if granularity == "channel" or k in (0, group_size) else (n, k // group_size)


def ternary_quantize(
    w: Tensor, method: str, scale_rule: str, threshold_factor: float, granularity: str, group_size: int = 0
) -> tuple[Tensor, Tensor]:
    n, k = w.shape
    shape = scale_shape(n, k, granularity, group_size)
    if w.numel() == 0:
        return ternary_pack(w.to(torch.int8)), w.new_full(shape, EPS, dtype=torch.float32)
    width = {"tensor": n * k, "channel": k, "group": group_size}[granularity]
    with torch.no_grad():
        left = _drop_smallest(w.float()).reshape(-1, width) if method == "nm34" else None
        rows, largest = w.float().reshape(-1, width), torch.finfo(w.dtype).max
        codes, scale = _quantize_rows(rows, left, method, scale_rule, threshold_factor, largest)
    return ternary_pack(codes.view(n, k)), scale.view(shape)


def act_codes(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes as float64 integers, and their scale: float32 for 8 bits, float64 for more."""
    wide = x.float() if bits == 8 else x.double()
    absmax = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros((*x.shape[:-1], 1))
    finite = absmax.isfinite()
    absmax = absmax.clamp(min=EPS) if bits == 8 else absmax
    largest = {8: 127, 16: 127 * 257, 24: 127 * 65793}[bits]
    # A tensor, because torch turns 127.0 / t and, on CUDA, t / 127.0 into products with a reciprocal: two roundings.
    most = torch.full_like(absmax, largest)
    q = (wide * (most / absmax)).round().clamp(-largest, largest)
    return q.where(finite & (absmax > 0), 0.0).double(), (absmax / most).where(finite, torch.nan)


def hadamard(x: Tensor, block_size: int, sign_before: Tensor | None = None, sign_after: Tensor | None = None) -> Tensor:
    v = (x.float() if sign_before is None else x.float() * sign_before).unflatten(-1, (-1, block_size))
    width = block_size // 2
    while width > 0:
        low, high = v.unflatten(-1, (-1, 2, width)).unbind(-2)
        v = torch.stack((low + high, low - high), -2).flatten(-3)
        width //= 2
    y = v.flatten(-2) * torch.tensor(block_size**-0.5, dtype=torch.float32, device=x.device)
    return (y if sign_after is None else y * sign_after).to(x.dtype)


NORM_LANES = 256


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The root-mean-square norm in float32, its squares summed in float64 in the order of the kernels."""
    if weight is None:
        return x
    wide = x.float()
    squares = torch.nn.functional.pad(wide.double().square(), (0, -x.shape[-1] % NORM_LANES))
    lanes = squares.unflatten(-1, (-1, NORM_LANES)).cumsum(-2)[..., -1, :] if x.shape[-1] else squares[..., :0]
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = low + high
    factor = ((lanes / x.shape[-1] + eps).sqrt().reciprocal()).float() if x.shape[-1] else wide[..., :1]
    return wide * factor * weight.float()


def act_quantize(
    x: Tensor, bits: int = 8, *, norm_weight: Tensor | None = None, norm_eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    q, scale = act_codes(normed(x, norm_weight, norm_eps), bits)
    if bits == 8:
        return q.to(torch.int8), scale
    digits = []
    for _ in range(bits // 8):
        rest = ((q + 128) / 256).floor()
        digits.append((q - 256 * rest).to(torch.int8))
        q = rest
    return torch.stack(digits, -2), scale
