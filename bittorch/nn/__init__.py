"""Layers: `TernaryLinear`, convolutions and `TernaryEmbedding` train, their ``Inference`` twins run them packed."""

from bittorch.nn import init
from bittorch.nn.packed_layer import PackedLayer
from bittorch.nn.registration import call_ternary_layers
from bittorch.nn.ternary_conv1d import TernaryConv1d
from bittorch.nn.ternary_conv1d_infer import TernaryConv1dInference
from bittorch.nn.ternary_conv2d import TernaryConv2d
from bittorch.nn.ternary_conv2d_infer import TernaryConv2dInference
from bittorch.nn.ternary_conv_transpose2d import TernaryConvTranspose2d
from bittorch.nn.ternary_conv_transpose2d_infer import TernaryConvTranspose2dInference
from bittorch.nn.ternary_embedding import TernaryEmbedding
from bittorch.nn.ternary_embedding_infer import TernaryEmbeddingInference
from bittorch.nn.ternary_linear import TernaryLinear
from bittorch.nn.ternary_linear_infer import TernaryLinearInference

__all__ = [
    "PackedLayer",
    "TernaryConv1d",
    "TernaryConv1dInference",
    "TernaryConv2d",
    "TernaryConv2dInference",
    "TernaryConvTranspose2d",
    "TernaryConvTranspose2dInference",
    "TernaryEmbedding",
    "TernaryEmbeddingInference",
    "TernaryLinear",
    "TernaryLinearInference",
    "call_ternary_layers",
    "init",
]
