"""Each op in plain torch: short and slow; what `backend="python"` runs and what tests compare with.

Products are summed in float64, so they are the exact answer to about 1e-15 before the last rounding.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import check_group_size, conv2d_out_sizes
from bittorch.ops.block_types import DECODERS, WEIGHTS

EPS = 1e-5


def _in_features(scale: Tensor, in_features: int) -> Tensor:
    """The scale of every element, broadcastable to (out_features, in_features)."""
    if scale.dim() == 1:
        return scale[:, None]
    return scale.repeat_interleave(in_features // scale.shape[1], dim=1)


def ternary_pack(codes: Tensor) -> Tensor:
    return _pack_raw((codes == 1).to(torch.uint8) + 2 * (codes == -1).to(torch.uint8))


def _pack_raw(raw: Tensor) -> Tensor:
    n, k = raw.shape
    quads = torch.nn.functional.pad(raw, (0, -k % 4)).view(n, (k + 3) // 4, 4)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def _raw_codes(w_packed: Tensor) -> Tensor:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=w_packed.device)
    return (w_packed[:, :, None] >> shifts & 3).flatten(1)


def ternary_unpack(w_packed: Tensor, scale: Tensor | None, in_features: int, dtype: torch.dtype) -> Tensor:
    raw = _raw_codes(w_packed)[:, :in_features].to(torch.int8)
    codes = (raw & 1) - (raw >> 1)
    return codes.to(dtype) if scale is None else (codes * _in_features(scale, in_features)).to(dtype)


def ternary_embedding(
    indices: Tensor, w_packed: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype, depth: int = 1
) -> Tensor:
    n = len(w_packed) // depth
    rows = indices.flatten() + n * torch.arange(depth, device=indices.device)[:, None]
    scales = scale if len(scale) == 1 != len(w_packed) else scale[rows.flatten()]
    planes = ternary_unpack(w_packed[rows.flatten()], scales, in_features, torch.float32)
    wide = planes.double().view(depth, *indices.shape, in_features)
    return sum(wide[1:], wide[0]).float().to(dtype)


def block_unpack(blocks: Tensor, kind: str, columns: int, dtype: torch.dtype) -> Tensor:
    if not blocks.numel():
        return torch.zeros(len(blocks), columns, dtype=dtype, device=blocks.device)
    count = len(blocks) * columns // WEIGHTS[kind]
    values = DECODERS[kind](blocks.numpy(force=True).reshape(count, -1))
    return torch.from_numpy(values).to(blocks.device, dtype).reshape(len(blocks), columns)


def block_linear(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    weight = block_unpack(blocks, kind, x.shape[-1], torch.float64)
    return (x.double() @ weight.t()).to(x.dtype)


def decode_attention(
    q: Tensor,
    kv: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
    window: int = 0,
    scale: float | None = None,
) -> Tensor:
    rows = range(len(lengths)) if rows is None else rows
    counts = [1] * len(lengths) if counts is None else counts
    scale = q.shape[2] ** -0.5 if scale is None else scale
    y, queries = torch.zeros_like(q), iter(range(len(q)))
    for length, row, count in zip(lengths, rows, counts, strict=True):
        for position in range(length - count, length):
            i, first = next(queries), max(0, position - window) if window else 0
            k, v = kv[:, row, :, first : position + 1].double().repeat_interleave(q.shape[1] // kv.shape[2], 1)
            scores = (k @ q[i].double()[:, :, None])[..., 0] * scale
            y[i] = (torch._safe_softmax(scores, -1)[:, None] @ v)[:, 0].to(q.dtype)
    return y


def rotary_store(
    heads: Tensor,
    kv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    lengths: Sequence[int],
    rows: Sequence[int] | None = None,
    counts: Sequence[int] | None = None,
) -> None:
    if cos is not None and sin is not None:
        turned = heads[:, : heads.shape[1] - kv.shape[2], : cos.shape[1]]
        swapped = turned.double().roll(cos.shape[1] // 2, 2)
        turned.copy_(turned.double() * cos[:, None] + swapped * sin[:, None])
    rows = range(len(lengths)) if rows is None else rows
    counts = [1] * len(lengths) if counts is None else counts
    new = heads[:, -2 * kv.shape[2] :].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
    for length, row, part in zip(lengths, rows, new.split(list(counts), 2), strict=True):
        kv[:, row, :, length - part.shape[2] : length] = part


def ternary_transpose(w_packed: Tensor, in_features: int) -> Tensor:
    return _pack_raw(_raw_codes(w_packed)[:, :in_features].t())


def ternary_from_base3(data: Tensor, in_features: int, layout: str = "rows") -> Tensor:
    if layout == "rows":
        raw = _base3_digits(data.long(), data > 242).flatten(1)
    else:
        parts = {"tq1_0": (32, 16, 4), "ptq1_0": (16, 8, 2)}[layout]
        size = sum(parts) + 2
        blocks = data.reshape(data.numel() // size, size)[:, :-2].long()
        value = blocks * 243 // 256
        digits = _base3_digits(value, (value * 256 + 242) // 243 != blocks).flip(2)
        first, second, last = (part.transpose(1, 2).flatten(1) for part in digits.split(parts, 1))
        raw = torch.cat([first, second, last[:, : 4 * parts[2]]], 1).view(len(data), in_features)
    return _pack_raw(raw)[:, : (in_features + 3) // 4].contiguous()


def _base3_digits(value: Tensor, damaged: Tensor) -> Tensor:
    """The five digits of each value as raw codes, the lowest first; 11 where it is damaged."""
    digits = value[..., None] // 3 ** torch.arange(5, device=value.device) % 3
    return torch.where(damaged[..., None], 3, (digits + 2) % 3).to(torch.uint8)


def ternary_check(w_packed: Tensor, in_features: int) -> Tensor:
    raw = _raw_codes(w_packed)
    if raw.shape[1] == 0:
        return torch.full((len(raw),), -1, device=raw.device)
    columns = torch.arange(raw.shape[1], device=raw.device)
    bad = (raw == 3) | ((columns >= in_features) & (raw != 0))
    return torch.where(bad, columns, raw.shape[1]).amin(1).where(bad.any(1), -1)


_TRIT_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "add": lambda a, b: (a + b).clamp(-1, 1),
    "sub": lambda a, b: (a - b).clamp(-1, 1),
    "mul": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
    "consensus": lambda a, b: torch.where(a == b, a, 0),
    **{name: getattr(torch, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}


def trit_elementwise(a: Tensor, b: Tensor | None, function: str, columns: int) -> Tensor:
    values = [ternary_unpack(rows, None, columns, torch.int8) for rows in (a, b) if rows is not None]
    return ternary_pack(_TRIT_FUNCTIONS[function](*values).to(torch.int8))


def trit_reduce(a: Tensor, b: Tensor | None, columns: int) -> Tensor:
    values = ternary_unpack(a, None, columns, torch.int8)
    if b is not None:
        values = values * ternary_unpack(b, None, columns, torch.int8)
    return torch.stack(((values == 1).sum(1), (values == -1).sum(1)), 1)


def bitplane_pack(w_packed: Tensor, columns: int) -> Tensor:
    codes = ternary_unpack(w_packed, None, columns, torch.int8)
    blocks = torch.nn.functional.pad(codes, (0, -columns % 512)).view(len(codes), -1, 2, 256)
    # The bits of a byte of a plane: trits of the first and of the second half of a block in turn.
    trits = blocks.transpose(2, 3).flatten(2)
    weights = 2 ** torch.arange(8, device=codes.device)
    planes = [(bits.unflatten(2, (64, 8)) * weights).sum(-1) for bits in (trits != 0, trits < 0)]
    return torch.stack(planes, 2).to(torch.uint8).flatten(1)


def bitplane_matmul(a: Tensor, b: Tensor, columns: int, layout: str = "rows") -> Tensor:
    dense = ternary_unpack(a, None, columns, torch.float64)
    if layout == "rows":
        return (dense @ ternary_unpack(b, None, columns, torch.float64).t()).to(torch.int32)
    bits = (b[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=b.device) & 1).view(
        len(b), b.shape[1] // 128, 2, 256, 2
    )
    trits = (bits[:, :, 0] * (1 - 2 * bits[:, :, 1].double())).transpose(2, 3).flatten(1)[:, :columns]
    return (dense @ trits.t()).to(torch.int32)


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


def _act_codes(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
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


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
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
    q, scale = _act_codes(_normed(x, norm_weight, norm_eps), bits)
    if bits == 8:
        return q.to(torch.int8), scale
    digits = []
    for _ in range(bits // 8):
        rest = ((q + 128) / 256).floor()
        digits.append((q - 256 * rest).to(torch.int8))
        q = rest
    return torch.stack(digits, -2), scale


def _add_bias(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias.float()).to(dtype)


def ternary_linear_packed(
    x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None = None, variant: str = "auto"
) -> Tensor:
    codes = ternary_unpack(w_packed, None, x.shape[-1], torch.float64)
    y = torch.nn.functional.linear(x.double(), codes * _in_features(scale.double(), x.shape[-1]))
    return _add_bias(y.float(), bias, x.dtype)


def ternary_linear_w2a8(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    activation_bits: int = 8,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    if x_scale is not None:
        q, x_scale = x.double(), x_scale.reshape(*x.shape[:-1], 1)
    else:
        q, x_scale = _act_codes(_normed(x, norm_weight, norm_eps), activation_bits)
    codes = ternary_unpack(w_packed, None, x.shape[-1], torch.float64)
    return _scaled_groups(q, x_scale, codes, scale, bias, activation_bits, out_dtype or x.dtype)


def _scaled_groups(
    q: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation_bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """The epilogue of the int8 products, of integers q and weight."""
    groups = scale.shape[1] if scale.dim() == 2 else 1
    scales = scale if scale.dim() == 2 else scale[:, None]
    y = torch.zeros(*q.shape[:-1], len(weight), dtype=x_scale.dtype, device=q.device)
    for g, (part, rows) in enumerate(zip(q.chunk(groups, -1), weight.chunk(groups, 1), strict=True)):
        dot = torch.nn.functional.linear(part, rows).to(y.dtype)  # exact: the integers are below 2^53
        s = scales[:, g]
        y = y + (dot * (x_scale * s) if activation_bits == 8 else dot * x_scale * s.double())
    return _add_bias(y.float(), bias, dtype)


def half_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def linear_i8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation_bits: int = 16,
    variant: str = "auto",
) -> Tensor:
    q, x_scale = _act_codes(x, activation_bits)
    return _scaled_groups(q.double(), x_scale, weight.double(), scale, bias, activation_bits, x.dtype)


def trit_depth_linear(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    depth: int,
    activation_bits: int = 16,
    variant: str = "auto",
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
) -> Tensor:
    q, x_scale = _act_codes(_normed(x, norm_weight, norm_eps), activation_bits)
    planes = ternary_unpack(w_packed, None, x.shape[-1], torch.float64).unflatten(0, (depth, -1))
    powers = 3.0 ** torch.arange(depth, dtype=torch.float64, device=x.device)
    integers = (planes * powers.view(-1, 1, 1)).sum(0)
    return _scaled_groups(q, x_scale, integers, scale, bias, activation_bits, x.dtype)


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """``value`` in the forward pass, with the gradient of ``source``; forward mode, vmap and fx see plain torch.

    What is added is exactly zero, so that ``value`` is not rounded once more; where ``source`` is not finite, no
    gradient passes.
    """
    return value + (source - source.detach()).nan_to_num(0.0)


def fake_quantize(x: Tensor, activation_bits: int) -> Tensor:
    """The codes of ``x`` times their scale, in its dtype."""
    q, x_scale = _act_codes(x, activation_bits)
    return (q * x_scale).to(x.dtype)


def ternary_linear_ste(
    x: Tensor,
    weight: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    quantized = ternary_unpack(w_packed, scale, weight.shape[1], x.dtype)
    if activation_bits:
        x = straight_through(x, fake_quantize(x.detach(), activation_bits))
    w = straight_through(weight.to(x.dtype), quantized)
    return torch.nn.functional.linear(x, w, None if bias is None else bias.to(x.dtype))


def ternary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    method: str,
    scale_rule: str,
    threshold_factor: float,
    granularity: str,
    group_size: int = 0,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    with torch.no_grad():
        packed = ternary_quantize(weight, method, scale_rule, threshold_factor, granularity, group_size)
    return ternary_linear_ste(x, weight, *packed, bias, activation_bits)


def _unflattened(w: Tensor, x: Tensor, kernel_size: Sequence[int], groups: int) -> Tensor:
    return w.view(len(w), x.shape[1] // groups, *kernel_size)


def ternary_conv2d_packed(
    x: Tensor,
    w_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    out = conv2d_out_sizes(x, len(w_packed), kernel_size, stride, padding, dilation, groups)
    k = x.shape[1] // groups * kernel_size[0] * kernel_size[1]
    codes = ternary_unpack(w_packed, None, k, torch.float64)
    steps = list(stride), list(padding), list(dilation), groups
    if not activation_bits:
        weight = _unflattened(codes * _in_features(scale.double(), k), x, kernel_size, groups)
        y = torch.nn.functional.conv2d(x.double(), weight, None, *steps).float()
    else:
        q, x_scale = _act_codes(x.flatten(1), activation_bits)
        x_scale = x_scale[:, :, None, None]
        parts = scale.shape[1] if scale.dim() == 2 else 1
        scales = scale if scale.dim() == 2 else scale[:, None]
        y = torch.zeros(len(x), len(codes), *out, dtype=x_scale.dtype, device=x.device)
        for g in range(parts):
            part = torch.zeros_like(codes)
            columns = slice(g * k // parts, (g + 1) * k // parts)
            part[:, columns] = codes[:, columns]
            weight = _unflattened(part, x, kernel_size, groups)
            dot = torch.nn.functional.conv2d(q.view(x.shape), weight, None, *steps).to(y.dtype)  # exact: below 2^53
            s = scales[:, g, None, None]
            y = y + (dot * (x_scale * s) if activation_bits == 8 else dot * x_scale * s.double())
        y = y.float()
    return _add_bias(y, None if bias is None else bias[:, None, None], x.dtype)


def ternary_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str,
    scale_rule: str,
    threshold_factor: float,
    granularity: str,
    group_size: int = 0,
    activation_bits: int = 0,
    variant: str = "auto",
) -> Tensor:
    conv2d_out_sizes(x, len(weight), weight.shape[2:], stride, padding, dilation, groups)
    rows = weight.flatten(1)
    with torch.no_grad():
        w_packed, scale = ternary_quantize(rows, method, scale_rule, threshold_factor, granularity, group_size)
        quantized = ternary_unpack(w_packed, scale, rows.shape[1], x.dtype).view(weight.shape)
    if activation_bits:
        q, x_scale = _act_codes(x.detach().flatten(1), activation_bits)
        x = straight_through(x, (q * x_scale).to(x.dtype).view(x.shape))
    w = straight_through(weight.to(x.dtype), quantized)
    bias = None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.conv2d(x, w, bias, list(stride), list(padding), list(dilation), groups)
