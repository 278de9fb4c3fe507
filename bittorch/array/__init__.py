"""Arrays of trits for NumPy, four to a byte: `TernaryArray`, functions of ternary logic, files."""

from bittorch.array import products as products  # they register what NumPy functions do
from bittorch.array import shaping as shaping
from bittorch.array import writing as writing
from bittorch.array.elementwise import (
    from_biased,
    tabs,
    tadd,
    tand,
    tconsensus,
    teq,
    tge,
    tgt,
    tle,
    tlt,
    tmax,
    tmin,
    tmul,
    tne,
    tnot,
    to_biased,
    tor,
    tsub,
)
from bittorch.array.files import load, save
from bittorch.array.reductions import trit_counts
from bittorch.array.ternary_array import TernaryArray

__all__ = [
    "TernaryArray",
    "from_biased",
    "load",
    "save",
    "tabs",
    "tadd",
    "tand",
    "tconsensus",
    "teq",
    "tge",
    "tgt",
    "tle",
    "tlt",
    "tmax",
    "tmin",
    "tmul",
    "tne",
    "tnot",
    "to_biased",
    "tor",
    "trit_counts",
    "tsub",
]
