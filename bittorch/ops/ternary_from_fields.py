"""Trits stored as two-bit fields in the orders of other programs to packed 2-bit rows."""

import torch
from torch import Tensor

from bittorch.ops._fake import check_data, check_written

# Weights of a block and its bytes.
_BLOCKS = {
    "i2_s_128x32": (128, 32),
    "i2_s_64x16": (64, 16),
    "i2_s_rows4": (1, 1),
    "bitnet": (1, 1),
    "tq2_0": (256, 66),
}
_FOUR_ROWS = ("i2_s_rows4", "bitnet")  # in each byte


def ternary_from_fields(data: Tensor, in_features: int, layout: str, w_packed: Tensor) -> Tensor:
    """Writes trits that are stored as fields ``weight + 1`` of two bits as canonical rows.

    A run of b bytes holds ``4 b`` weights: weight ``b i + m`` at bits ``2 i`` of byte m, and at bits ``6 - 2 i`` in the
    layouts of I2_S. ``i2_s_128x32`` has runs of 32 bytes, ``i2_s_64x16`` of 16, ``tq2_0`` blocks of two runs of 32 and
    a scale of 2 bytes. In ``i2_s_rows4`` and ``bitnet`` a row of data is one run, whose four parts are rows: of row r
    of data the rows ``4 r + i``, and for ``bitnet`` the rows ``r + i * out_features / 4``.

    Args:
        data: uint8 on the CPU: ``(out_features, in_features / weights * bytes)`` for blocks, ``(out_features / 4,
            in_features)`` where a byte holds four rows.
        in_features: columns of the dense matrix, a multiple of 128, 64 and 256 for the blocks.
        layout: ``i2_s_128x32``, ``i2_s_64x16``, ``i2_s_rows4``, ``bitnet`` or ``tq2_0``.
        w_packed: ``(out_features, ceil(in_features / 4))`` uint8, apart from ``data``; written to.

    Returns:
        ``(rows of data,)`` bool: whether the row has the field 3, which is no weight. Its code is the reserved 11, and
        `ternary_check` finds its place.

    Raises:
        TypeError: ``data`` or ``w_packed`` is not uint8.
        ValueError: another layout or shape; bytes of a row of ``w_packed`` that do not lie side by side.
        RuntimeError: tensors that share memory, or are on different devices.
        NotImplementedError: CUDA.

    Source: microsoft/BitNet (I2_S); transformers 5 (BitNet); gguf-py 0.19 (TQ2_0).
    """
    return torch.ops.bittorch.ternary_from_fields(data, in_features, layout, w_packed)


@torch.library.register_fake("bittorch::ternary_from_fields")
def _(data: Tensor, in_features: int, layout: str, w_packed: Tensor) -> Tensor:
    check_data(data, "rows", in_features, layout, _BLOCKS)
    rows = 4 * data.shape[0] if layout in _FOUR_ROWS else data.shape[0]
    check_written(w_packed, "w_packed", data, rows, in_features)
    return data.new_empty(data.shape[0], dtype=torch.bool)
