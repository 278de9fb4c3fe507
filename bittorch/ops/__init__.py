"""The ops of torch.ops.bittorch with their contracts; `reference` holds each of them in plain torch."""

from bittorch.ops import _vmap
from bittorch.ops.act_quantize import act_quantize
from bittorch.ops.bitplane_matmul import bitplane_matmul
from bittorch.ops.bitplane_pack import bitplane_pack
from bittorch.ops.block_linear import block_linear
from bittorch.ops.block_unpack import block_unpack
from bittorch.ops.decode_attention import decode_attention
from bittorch.ops.hadamard import hadamard
from bittorch.ops.half_linear import half_linear
from bittorch.ops.linear_i8 import linear_i8
from bittorch.ops.rotary_store import rotary_store
from bittorch.ops.ternary_check import check_packed, ternary_check
from bittorch.ops.ternary_conv2d import check_conv2d_input, ternary_conv2d
from bittorch.ops.ternary_conv2d_packed import ternary_conv2d_packed
from bittorch.ops.ternary_embedding import ternary_embedding
from bittorch.ops.ternary_from_base3 import ternary_from_base3
from bittorch.ops.ternary_from_fields import ternary_from_fields
from bittorch.ops.ternary_linear import check_input, ternary_linear, ternary_linear_ste
from bittorch.ops.ternary_linear_packed import (
    has_packed_cuda_support,
    ternary_linear_packed,
    ternary_linear_packed_forward,
)
from bittorch.ops.ternary_linear_w2a8 import ternary_linear_w2a8
from bittorch.ops.ternary_pack import ternary_pack
from bittorch.ops.ternary_quantize import ternary_quantize
from bittorch.ops.ternary_transpose import ternary_transpose
from bittorch.ops.ternary_unpack import ternary_unpack
from bittorch.ops.trit_depth_linear import trit_depth_linear
from bittorch.ops.trit_elementwise import trit_elementwise
from bittorch.ops.trit_reduce import trit_reduce

_vmap.register()

__all__ = [
    "act_quantize",
    "bitplane_matmul",
    "bitplane_pack",
    "block_linear",
    "block_unpack",
    "check_conv2d_input",
    "check_input",
    "check_packed",
    "decode_attention",
    "hadamard",
    "half_linear",
    "has_packed_cuda_support",
    "linear_i8",
    "rotary_store",
    "ternary_check",
    "ternary_conv2d",
    "ternary_conv2d_packed",
    "ternary_embedding",
    "ternary_from_base3",
    "ternary_from_fields",
    "ternary_linear",
    "ternary_linear_packed",
    "ternary_linear_packed_forward",
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
