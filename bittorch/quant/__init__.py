"""Quantisers: what a weight becomes. `ternary_quantize` is the function, `TernaryQuantizer` the object."""

from bittorch.quant.base import QuantConfig, Quantizer, QuantType
from bittorch.quant.compensated import compensated_integers
from bittorch.quant.int4 import Int4QuantConfig
from bittorch.quant.ternary import (
    TernaryQuantConfig,
    TernaryQuantizer,
    ternary_fake_quantize,
    ternary_quantize,
    ternary_quantize_ste,
)
from bittorch.quant.ternary_packed import pack_ternary, unpack_ternary
from bittorch.quant.trit_planes import (
    check_depth,
    check_plane_scales,
    from_trit_planes,
    pack_trit_planes,
    trit_planes,
    unpack_trit_planes,
)

__all__ = [
    "Int4QuantConfig",
    "QuantConfig",
    "QuantType",
    "Quantizer",
    "TernaryQuantConfig",
    "TernaryQuantizer",
    "check_depth",
    "check_plane_scales",
    "compensated_integers",
    "from_trit_planes",
    "pack_ternary",
    "pack_trit_planes",
    "ternary_fake_quantize",
    "ternary_quantize",
    "ternary_quantize_ste",
    "trit_planes",
    "unpack_ternary",
    "unpack_trit_planes",
]
