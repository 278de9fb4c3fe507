"""What fakes and the reference check, with the words of the C++ side.

A meta tensor among real ones makes torch run the fake, whose result would be unwritten memory. Sizes that a caller
gives are checked here too: the product of two of them can exceed int64, where torch's own convolution wraps around.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_LARGEST = 2**63 - 1


def check_same_device(**tensors: Tensor | None) -> None:
    """Raises RuntimeError where a tensor is not on the device of the first."""
    (first_name, first), *others = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in others:
        if tensor.device != first.device:
            raise RuntimeError(
                f"{first_name} is on {first.device} but {name} is on {tensor.device}; move one of them with .to()"
            )


def check_packed_width(w_packed: Tensor, in_features: int) -> None:
    """Raises ValueError where a packed row does not hold ``in_features`` codes."""
    if w_packed.dim() != 2 or w_packed.shape[1] != (in_features + 3) // 4:
        raise ValueError(
            f"w_packed must be (out_features, {(in_features + 3) // 4}) for in_features={in_features}, "
            f"got {tuple(w_packed.shape)}"
        )


def check_in_features(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError where ``weight`` does not have rows as long as those of ``x``."""
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be (out_features, {x.shape[-1]}) for x of {list(x.shape)}, got {list(weight.shape)}"
        )


def check_codes(name: str, rows: Tensor, columns: int) -> None:
    """Raises TypeError or ValueError where ``rows`` is no uint8 matrix of ``columns`` codes per row."""
    if rows.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8, got {str(rows.dtype).removeprefix('torch.')}")
    if columns < 0:
        raise ValueError(f"columns must not be negative, got {columns}")
    if rows.dim() != 2 or rows.shape[1] != (columns + 3) // 4:
        raise ValueError(
            f"{name} must be (rows, {(columns + 3) // 4}) uint8 for columns={columns}, got {list(rows.shape)}"
        )


def check_trit_rows(columns: int, a: Tensor, b: Tensor | None) -> int:
    """The rows of a function of ``a`` and ``b``; ValueError where one does not hold ``columns`` codes per row."""
    check_codes("a", a, columns)
    if b is not None:
        check_codes("b", b, columns)
    if b is None or b.shape[0] == a.shape[0] or b.shape[0] == 1:
        return a.shape[0]
    if a.shape[0] != 1:
        raise ValueError(f"a and b must have as many rows, or one of them one, got {a.shape[0]} and {b.shape[0]}")
    return b.shape[0]


def check_data(data: Tensor, rows: str, in_features: int, layout: str, blocks: Mapping[str, tuple[int, int]]) -> None:
    """Raises ValueError where bytes of a file are not rows of ``in_features`` weights in a layout.

    Args:
        data: of the file.
        rows: what messages call its rows.
        in_features: a multiple of the weights of a block, but in the layout "rows".
        layout: one of ``blocks``.
        blocks: weights of a block and its bytes.
    """
    if layout not in blocks:
        *known, last = map(repr, blocks)
        raise ValueError(f"layout must be {', '.join(known)} or {last}, got {layout!r}")
    if in_features < 0:
        raise ValueError(f"in_features must not be negative, got {in_features}")
    weights, bytes_each = blocks[layout]
    if layout != "rows" and in_features % weights:
        raise ValueError(f"in_features must be a multiple of {weights} for layout={layout!r}, got {in_features}")
    bytes_a_row = (in_features + weights - 1) // weights * bytes_each
    if data.dim() != 2 or data.shape[1] != bytes_a_row:
        raise ValueError(
            f"data must be ({rows}, {bytes_a_row}) uint8 for in_features={in_features} and layout={layout!r}, "
            f"got {tuple(data.shape)}"
        )


def check_written(tensor: Tensor, name: str, data: Tensor, rows: int, in_features: int) -> None:
    """Raises where packed rows of ``data`` cannot be written to ``tensor``."""
    columns = (in_features + 3) // 4
    if tuple(tensor.shape) != (rows, columns):
        raise ValueError(
            f"{name} must be ({rows}, {columns}) uint8 for in_features={in_features} and data of {tuple(data.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    check_same_device(**{"data": data, name: tensor})


def check_matrix(name: str, matrix: Tensor) -> None:
    """Raises ValueError where ``matrix`` does not have two dimensions."""
    if matrix.dim() != 2:
        raise ValueError(f"{name} must be (out_features, in_features), got {tuple(matrix.shape)}")


def check_group_size(in_features: int, group_size: int) -> None:
    """Raises ValueError where groups of ``group_size`` columns do not cut a row into equal multiples of 4."""
    if group_size <= 0 or group_size % 4:
        raise ValueError(f"group_size must be a positive multiple of 4, got {group_size}")
    if in_features % group_size:
        raise ValueError(
            f"group_size must divide in_features, got group_size={group_size} and in_features={in_features}"
        )


def _check_pair(name: str, values: Sequence[int], least: int) -> None:
    if len(values) != 2 or min(values) < least:
        raise ValueError(f"{name} must be two integers of at least {least}, got {list(values)}")


def _check_size(what: str, size: int, terms: Sequence[int]) -> None:
    if type(size) is int and size > _LARGEST:  # a symbolic size is one of torch's, which has checked it
        raise ValueError(f"{what} must be below 2^63, got {size} from {list(terms)}")


def conv2d_out_sizes(
    x: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    """Height and width of a convolution's result; ValueError where it has none."""
    if x.dim() != 4:
        raise ValueError(f"x must be (samples, channels, height, width), got {tuple(x.shape)}")
    for name, values, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0)):
        _check_pair(name, values, least)
    _check_pair("dilation", dilation, 1)
    if groups < 1 or x.shape[1] % groups or out_channels % groups:
        raise ValueError(
            f"groups must divide channels and out_channels, got groups={groups}, {x.shape[1]} channels in x and "
            f"{out_channels} out_channels"
        )
    sizes = []
    for d in (0, 1):
        padded, reach = x.shape[2 + d] + 2 * padding[d], dilation[d] * (kernel_size[d] - 1)
        _check_size("height or width and padding", padded, (x.shape[2 + d], padding[d], padding[d]))
        _check_size("dilation times (kernel_size - 1)", reach, (dilation[d], kernel_size[d] - 1))
        if padded <= reach:
            raise ValueError(
                f"the padded input is smaller than the kernel: x {list(x.shape)} with padding {list(padding)} against "
                f"kernel_size {list(kernel_size)} with dilation {list(dilation)}"
            )
        sizes.append((padded - reach - 1) // stride[d] + 1)
    return sizes


def in_memory_format_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` in channels_last where ``x`` is in it, as torch's convolution gives it."""
    return y.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
