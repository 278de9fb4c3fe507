"""Products of packed and other small weights in plain torch, summed in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bittorch.ops._fake import conv2d_out_sizes
from bittorch.ops.reference.packed import block_unpack, over_columns, ternary_unpack
from bittorch.ops.reference.quantize import act_codes, normed


def _add_bias(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias.float()).to(dtype)


def ternary_linear_packed(
    x: Tensor, w_packed: Tensor, scale: Tensor, bias: Tensor | None = None, variant: str = "auto"
) -> Tensor:
    codes = ternary_unpack(w_packed, None, x.shape[-1], torch.float64)
    y = torch.nn.functional.linear(x.double(), codes * over_columns(scale.double(), x.shape[-1]))
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
        q, x_scale = act_codes(normed(x, norm_weight, norm_eps), activation_bits)
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


def block_linear(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    weight = block_unpack(blocks, kind, x.shape[-1], torch.float64)
    return (x.double() @ weight.t()).to(x.dtype)


def linear_i8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation_bits: int = 16,
    variant: str = "auto",
) -> Tensor:
    q, x_scale = act_codes(x, activation_bits)
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
    q, x_scale = act_codes(normed(x, norm_weight, norm_eps), activation_bits)
    planes = ternary_unpack(w_packed, None, x.shape[-1], torch.float64).unflatten(0, (depth, -1))
    powers = 3.0 ** torch.arange(depth, dtype=torch.float64, device=x.device)
    integers = (planes * powers.view(-1, 1, 1)).sum(0)
    return _scaled_groups(q, x_scale, integers, scale, bias, activation_bits, x.dtype)


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
        weight = _unflattened(codes * over_columns(scale.double(), k), x, kernel_size, groups)
        y = torch.nn.functional.conv2d(x.double(), weight, None, *steps).float()
    else:
        q, x_scale = act_codes(x.flatten(1), activation_bits)
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
