"""Layers: `TernaryLinear` trains, `TernaryLinearInference` runs what was trained."""

from bittorch.nn.ternary_linear import TernaryLinear
from bittorch.nn.ternary_linear_infer import TernaryLinearInference

__all__ = ["TernaryLinear", "TernaryLinearInference"]
