"""Trits stored five to a byte to packed 2-bit rows."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_data, check_written

_BLOCKS = {"rows": (5, 1), "tq1_0": (256, 54), "ptq1_0": (128, 28)}  # weights, bytes


def ternary_from_base3(data: Tensor, in_features: int, layout: str = "rows", *, out: Tensor | None = None) -> Tensor:
    """Packs trits that are stored as digits of base 3, five a byte, in 2 bits each.

    ``rows``: byte j of a row is the sum over ``i < 5`` of ``(weight[5 j + i] + 1) * 3**i``, at most 242. The blocks of
    ``tq1_0`` are parts of 32, 16 and 4 bytes and a scale of 2, those of ``ptq1_0`` parts of 16, 8 and 2 and the scale.
    A part of b bytes holds the next ``5 b`` weights, the last one ``4 b``: digit d of byte m is weight ``d b + m``, and
    the byte is ``ceil(v * 256 / 243)`` with v the sum over ``d < 5`` of ``(weight + 1) * 3**(4 - d)``.

    Nothing is checked: a byte that no five trits make gives the reserved code 11, and padding that stands in the last
    byte of a packed row is kept. `ternary_check` finds both.

    Args:
        data: uint8 on the CPU: ``(out_features, ceil(in_features / 5))``, for ``tq1_0`` ``(out_features, in_features /
            256 * 54)``, for ``ptq1_0`` ``(out_features, in_features / 128 * 28)``.
        in_features: columns of the dense matrix, a multiple of 256 and 128 for the blocks.
        layout: ``rows``, ``tq1_0`` or ``ptq1_0``.
        out: what the result is written to, rows of a larger tensor for example; None makes a new one.

    Returns:
        ``(out_features, ceil(in_features / 4))`` uint8.

    Raises:
        TypeError: ``data`` or ``out`` is not uint8.
        ValueError: another layout or shape; bytes of a row of ``out`` that do not lie side by side.
        RuntimeError: tensors that share memory, or are on different devices.
        NotImplementedError: CUDA.

    Source: gguf-py 0.19 (TQ1_0); PrismML's fork of llama.cpp (PTQ1_0).
    """
    if out is None:
        return torch.ops.bittorch.ternary_from_base3(data, in_features, layout)
    torch.ops.bittorch.ternary_from_base3.out(data, in_features, layout, out=out)
    return out


@torch.library.register_fake("bittorch::ternary_from_base3.out")
def _(data: Tensor, in_features: int, layout: str = "rows", *, out: Tensor) -> None:
    check_data(data, "out_features", in_features, layout, _BLOCKS)
    check_written(out, "out", data, data.shape[0], in_features)


@torch.library.register_fake("bittorch::ternary_from_base3")
def _(data: Tensor, in_features: int, layout: str = "rows") -> Tensor:
    check_data(data, "out_features", in_features, layout, _BLOCKS)
    return data.new_empty((data.shape[0], (in_features + 3) // 4))
