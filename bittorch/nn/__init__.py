"""Layers: `TernaryLinear` and `TernaryConv2d` train, their ``Inference`` twins run what was trained."""

from bittorch.nn import init
from bittorch.nn.packed_layer import PackedLayer
from bittorch.nn.registration import call_ternary_layers
from bittorch.nn.ternary_conv2d import TernaryConv2d
from bittorch.nn.ternary_conv2d_infer import TernaryConv2dInference
from bittorch.nn.ternary_embedding_infer import TernaryEmbeddingInference
from bittorch.nn.ternary_linear import TernaryLinear
from bittorch.nn.ternary_linear_infer import TernaryLinearInference

__all__ = [
    "PackedLayer",
    "TernaryConv2d",
    "TernaryConv2dInference",
    "TernaryEmbeddingInference",
    "TernaryLinear",
    "TernaryLinearInference",
    "call_ternary_layers",
    "init",
]
