"""Quantisers: what a weight becomes. `ternary_quantize` is the function, `TernaryQuantizer` the object."""

from bittorch.quant.base import QuantConfig, Quantizer, QuantType
from bittorch.quant.int4 import Int4QuantConfig
from bittorch.quant.ternary import (
    TernaryQuantConfig,
    TernaryQuantizer,
    ternary_quantize,
    ternary_quantize_ste,
)

__all__ = [
    "Int4QuantConfig",
    "QuantConfig",
    "QuantType",
    "Quantizer",
    "TernaryQuantConfig",
    "TernaryQuantizer",
    "ternary_quantize",
    "ternary_quantize_ste",
]
