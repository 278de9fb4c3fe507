"""Products whose columns are spread over processes: integers are added, so the cut leaves no trace in the result."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bittorch import ops
from bittorch.quant.ternary import check_activation_bits
from bittorch.quant.trit_planes import check_depth, unpack_trit_planes

Group = dist.ProcessGroup | None
_EXACT_IN_FLOAT32 = 1 << 24  # integers up to here; sums of such sums too, in any order
_LARGEST_CODE = 128


def row_parallel_linear(
    x: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation_bits: int | None = None,
    depth: int = 1,
    group: Group = None,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-5,
    weight: Tensor | None = None,
) -> Tensor:
    """``y = x @ (codes * scale)^T + bias`` where each process of ``group`` has an equal share of the columns.

    With ``activation_bits`` and a scale for the tensor or for each row, the result has the bits that
    `bittorch.ops.ternary_linear_w2a8` (with a depth, `bittorch.ops.trit_depth_linear`) computes of the whole: the
    largest magnitude of a token is the maximum over processes, integer sums are added as integers, and scale and bias
    come after. With a scale for each group of columns, and without ``activation_bits``, float32 shares are added,
    which rounds otherwise than one process does: 1e-6 of the largest output or so.

    All processes call it with the same number of tokens, and all get the result. They exchange a number for each token,
    then ``(tokens, out_features)`` 4-byte numbers for each 8 bits.

    Args:
        x: ``(..., columns)`` float32, float16 or bfloat16, this process's columns.
        weight_packed: ``(depth * out_features, columns / 4)`` uint8, those of this process.
        scale: float32 ``(1,)`` or ``(depth * out_features,)``, of the whole rows; or ``(depth * out_features,
            groups)`` of this process's groups.
        bias: None or ``(out_features,)`` floating, the same in all processes; added once.
        activation_bits: None for floating activations, else 8, 16 or 24.
        depth: planes of trits.
        group: of processes; None for all.
        norm_weight: None, or that of the root-mean-square norm of the whole row, ``(columns * processes,)``: rows are
            then gathered, normed as `bittorch.ops.act_quantize` does, and cut again. With ``activation_bits`` only.
        norm_eps: of the norm.
        weight: None, or a master ``(out_features, columns)`` of these codes, which receives their gradient.

    Returns:
        ``(..., out_features)`` of the dtype of ``x``. Differentiable once in ``x`` (straight through the rounding),
        ``weight`` and ``bias``, but for a norm; the gradient of ``x`` is that of this process's columns.

    Raises:
        TypeError: a scale that is not float32; ``x`` of another dtype.
        ValueError: columns that are no multiple of 4, shapes that do not go together, more columns than 32-bit sums
            hold, a norm without activation_bits.
        NotImplementedError: gradients through a norm.
    """
    columns = x.shape[-1] if x.dim() else 0
    _check(x, weight_packed, scale, bias, depth, activation_bits)
    if norm_weight is not None:
        if activation_bits is None:
            raise ValueError("norm_weight goes with activation_bits; apply the norm before the product")
        if torch.is_grad_enabled() and (x.requires_grad or norm_weight.requires_grad):
            raise NotImplementedError(
                "row_parallel_linear has no gradient through a norm; run it under torch.no_grad()"
            )
    rows = x.reshape(-1, columns)
    arguments = (weight_packed, scale, activation_bits, depth, group, norm_weight, norm_eps)
    trained = [t for t in (x, weight) if t is not None and t.requires_grad]
    with torch.autocast(x.device.type, enabled=False):  # the ops would round what is float32 on purpose
        if torch.is_grad_enabled() and trained:
            y = _RowParallel.apply(rows, weight, *arguments)
        else:
            y = _product(rows, *arguments)[0]
        if bias is not None:
            y = y + bias.float()
        y = y.to(x.dtype)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[1])


def _check(x: Tensor, weight_packed: Tensor, scale: Tensor, bias: Tensor | None, depth: int, bits: int | None) -> None:
    columns, planes = x.shape[-1] if x.dim() else 0, check_depth(depth)
    if columns == 0 or columns % 4 or weight_packed.dim() != 2 or weight_packed.shape[1] * 4 != columns:
        raise ValueError(
            f"a process's columns must be a multiple of 4, a byte of codes, and those of its weight_packed; got x "
            f"{tuple(x.shape)} and weight_packed {tuple(weight_packed.shape)}"
        )
    if len(weight_packed) % planes:
        raise ValueError(f"weight_packed has {len(weight_packed)} rows, no multiple of depth={planes}")
    count = len(weight_packed)
    if scale.dtype != torch.float32:
        raise TypeError(f"scale must be float32, got {scale.dtype}")
    if scale.dim() not in (1, 2) or (len(scale) != count and (tuple(scale.shape) != (1,) or planes > 1)):
        raise ValueError(f"scale must be ({count},) or ({count}, groups), or (1,) at depth 1; got {tuple(scale.shape)}")
    if bias is not None and tuple(bias.shape) != (count // planes,):
        raise ValueError(
            f"bias must be ({count // planes},) for out_features={count // planes}, got {tuple(bias.shape)}"
        )
    check_activation_bits(bits, columns)


def _product(
    rows: Tensor,
    weight_packed: Tensor,
    scale: Tensor,
    bits: int | None,
    depth: int,
    group: Group,
    norm_weight: Tensor | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The float32 sums ``(tokens, out_features)``, and what was multiplied: codes and steps, or floats alone."""
    if bits is None:
        wide = rows.float()
        parts = ops.ternary_linear_packed(wide, weight_packed, scale)
        y = _sum_planes(parts, depth)
        dist.all_reduce(y, group=group)
        return y, rows, None
    q, step = _quantized(rows, bits, group, norm_weight, norm_eps)
    if scale.dim() == 2:
        y = _group_sums(q, step, weight_packed, scale, depth)
        dist.all_reduce(y, group=group)
        return y, q, step
    sums = _integer_sums(q, weight_packed, depth, rows.shape[1] * dist.get_world_size(group))
    dist.all_reduce(sums, group=group)
    lowest = scale[: len(scale) // depth] if depth > 1 else scale  # plane i has 3^i times it
    if bits == 8:
        return sums[0].float() * (step * lowest), q, step
    joined = _joined(sums.double())
    return ((joined * step) * lowest.double()).float(), q, step


def _sum_planes(rows: Tensor, depth: int) -> Tensor:
    y, *higher = rows.chunk(depth, -1)
    for plane in higher:
        y = y + plane
    return y.contiguous()


def _joined(digits: Tensor) -> Tensor:
    """``d0 + 256 d1 (+ 65536 d2)`` of the first dimension, exact in float64."""
    total = digits[-1]
    for digit in reversed(digits[:-1].unbind()):
        total = 256 * total + digit
    return total


def _quantized(
    rows: Tensor, bits: int, group: Group, norm_weight: Tensor | None, norm_eps: float
) -> tuple[Tensor, Tensor]:
    """This process's columns of `bittorch.ops.act_quantize` of whole rows: ``(digits, tokens, columns)``, steps."""
    columns, rank = rows.shape[1], dist.get_rank(group)
    if norm_weight is not None:
        whole = gather(rows, -1, group)
        q, step = ops.act_quantize(whole, bits, norm_weight=norm_weight, norm_eps=norm_eps)
        q = q[..., rank * columns : (rank + 1) * columns]
    else:
        # Every process quantises its columns beside the largest magnitude of all: the op itself then finds the step.
        largest = rows.detach().abs().amax(-1, keepdim=True).float()
        largest.nan_to_num_(
            nan=torch.inf, posinf=torch.inf
        )  # which a maximum over processes keeps; both make a row NaN
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        q, step = ops.act_quantize(torch.cat((rows, largest.to(rows.dtype)), -1), bits)
        q = q[..., :columns]
    q = q.unsqueeze(0) if bits == 8 else q.transpose(0, 1)
    return q.contiguous(), step


def _integer_sums(q: Tensor, weight_packed: Tensor, depth: int, all_columns: int) -> Tensor:
    """``(digits, tokens, out_features)`` sums of codes by weights, ``sum_i 3^i codes_i`` with planes.

    They are float32 where that holds every sum of all processes exactly, else int32.
    """
    bound = all_columns * _LARGEST_CODE * (3**depth - 1) // 2
    if bound >= 1 << 31:
        raise ValueError(f"in_features={all_columns} at depth {depth} is more than 32-bit sums of int8 products hold")
    digits, tokens, columns = q.shape
    flat = q.flatten(0, 1)
    one = _ones(1, q.device)
    steps = _ones(len(flat), q.device)
    dtype = torch.float32 if bound < _EXACT_IN_FLOAT32 else torch.int32
    total = torch.zeros((len(flat), len(weight_packed) // depth), dtype=dtype, device=q.device)
    piece = _EXACT_IN_FLOAT32 // _LARGEST_CODE - 4  # the op gives float32
    for begin in range(0, columns, piece):
        codes, packed = flat[:, begin : begin + piece], weight_packed[:, begin // 4 : (begin + piece) // 4]
        sums = ops.ternary_linear_w2a8(codes, packed, one, x_scale=steps, out_dtype=torch.float32).to(dtype)
        for power, plane in enumerate(sums.chunk(depth, -1)):
            total += 3**power * plane
    return total.unflatten(0, (digits, tokens))


def _ones(count: int, device: torch.device) -> Tensor:
    return torch.ones(count, dtype=torch.float32, device=device)


def _group_sums(q: Tensor, step: Tensor, weight_packed: Tensor, scale: Tensor, depth: int) -> Tensor:
    """This process's share of float32 sums, with its groups of columns."""
    ones = _ones(q.shape[1] * len(q), q.device)
    sums = ops.ternary_linear_w2a8(q.flatten(0, 1), weight_packed, scale, x_scale=ones, out_dtype=torch.float32)
    joined = _joined(sums.unflatten(0, (len(q), -1)).double())
    return _sum_planes((joined * step).float(), depth)


def gather(part: Tensor, dim: int, group: Group) -> Tensor:
    """The parts of all processes side by side; no gradient."""
    part = part.detach().contiguous()
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts, dim)


class _RowParallel(torch.autograd.Function):
    """`_product` with gradients of this process's columns; the sum over processes has that of its terms."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor | None, *arguments: Any) -> Tensor:
        weight_packed, scale, _, depth, *_ = arguments
        y, multiplied, step = _product(rows, *arguments)
        ctx.depth, ctx.dtypes = depth, (rows.dtype, None if weight is None else weight.dtype)
        ctx.save_for_backward(weight_packed, scale, multiplied, step)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight_packed, scale, multiplied, step = ctx.saved_tensors
        for_x, for_weight, *_ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if for_x:
            grad_x = grad @ unpack_trit_planes(weight_packed, scale, ctx.depth, multiplied.shape[-1])
            grad_x = grad_x.to(ctx.dtypes[0])
        if for_weight:
            x = multiplied.float() if step is None else (_joined(multiplied.double()) * step).float()
            grad_weight = (grad.t() @ x).to(ctx.dtypes[1])
        return grad_x, grad_weight, *[None] * 7


class _Copied(torch.autograd.Function):
    """The input of layers of which each process has some rows: its gradient is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Gathered(torch.autograd.Function):
    """The outputs of all processes side by side; a process's share of the gradient is that of its own."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.size = group, y.shape[-1]
        return gather(y, -1, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        begin = dist.get_rank(ctx.group) * ctx.size
        return grad[..., begin : begin + ctx.size].contiguous(), None


def copied(x: Tensor, group: Group) -> Tensor:
    """``x``, with gradients summed over processes."""
    y: Tensor = _Copied.apply(x, group) if torch.is_grad_enabled() and x.requires_grad else x
    return y


def gathered_outputs(y: Tensor, group: Group) -> Tensor:
    """The outputs ``(..., out_features)`` of all processes."""
    whole: Tensor = _Gathered.apply(y, group)
    return whole
