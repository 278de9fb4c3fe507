"""Each op in plain torch: short and slow; what ``backend="python"`` runs and what tests compare with.

Products are summed in float64, so they are the exact answer to about 1e-15 before the last rounding.
"""

from bittorch.ops.reference.attention import decode_attention, rotary_store
from bittorch.ops.reference.packed import (
    block_unpack,
    ternary_check,
    ternary_embedding,
    ternary_from_base3,
    ternary_from_fields,
    ternary_pack,
    ternary_transpose,
    ternary_unpack,
)
from bittorch.ops.reference.products import (
    block_linear,
    half_linear,
    linear_i8,
    ternary_conv2d_packed,
    ternary_linear_packed,
    ternary_linear_w2a8,
    trit_depth_linear,
)
from bittorch.ops.reference.quantize import (
    EPS,
    act_codes,
    act_quantize,
    hadamard,
    scale_shape,
    ternary_quantize,
)
from bittorch.ops.reference.training import (
    fake_quantize,
    straight_through,
    ternary_conv2d,
    ternary_linear,
    ternary_linear_ste,
)
from bittorch.ops.reference.trits import bitplane_matmul, bitplane_pack, trit_elementwise, trit_reduce

__all__ = [
    "EPS",
    "act_codes",
    "act_quantize",
    "bitplane_matmul",
    "bitplane_pack",
    "block_linear",
    "block_unpack",
    "decode_attention",
    "fake_quantize",
    "hadamard",
    "half_linear",
    "linear_i8",
    "rotary_store",
    "scale_shape",
    "straight_through",
    "ternary_check",
    "ternary_conv2d",
    "ternary_conv2d_packed",
    "ternary_embedding",
    "ternary_from_base3",
    "ternary_from_fields",
    "ternary_linear",
    "ternary_linear_packed",
    "ternary_linear_ste",
    "ternary_linear_w2a8",
    "ternary_pack",
    "ternary_quantize",
    "ternary_transpose",
    "ternary_unpack",
    "trit_depth_linear",
    "trit_elementwise",
    "trit_reduce",
]
