"""Ternary (1.58-bit) neural networks for PyTorch: train, export to packed 2-bit weights, run them bit for bit.

>>> model = nn.Sequential(bittorch.TernaryLinear(784, 256), nn.ReLU(), bittorch.TernaryLinear(256, 10))
>>> ...  # any training loop
>>> packed = bittorch.export_for_inference(model)
>>> assert torch.equal(model.eval()(x), packed(x))
"""

from bittorch import _extension, _startup
from bittorch._extension import has_cuda_ext
from bittorch._version import __version__

try:
    _extension.load()
except Exception as error:
    if _startup.is_program():
        _startup.end(error)
    raise

from bittorch import _C as _C
from bittorch import nn as nn
from bittorch import ops as ops
from bittorch import quant as quant
from bittorch import train as train
from bittorch import utils as utils
from bittorch.nn import (
    TernaryConv1d,
    TernaryConv1dInference,
    TernaryConv2d,
    TernaryConv2dInference,
    TernaryConvTranspose2d,
    TernaryConvTranspose2dInference,
    TernaryEmbedding,
    TernaryEmbeddingInference,
    TernaryLinear,
    TernaryLinearInference,
)
from bittorch.quant import (
    TernaryQuantConfig,
    TernaryQuantizer,
    ternary_fake_quantize,
    ternary_quantize,
    ternary_quantize_ste,
)
from bittorch.utils import (
    Calibration,
    export_conv2d_to_inference,
    export_for_inference,
    export_linear_to_inference,
    load_ternary_inference_checkpoint,
    quantize_,
    quantize_model,
    save_ternary_inference_checkpoint,
)

# Without the modules: a star import would put them in the place of torch's nn, or of a train and utils of the caller.
__all__ = [
    "Calibration",
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
    "TernaryQuantConfig",
    "TernaryQuantizer",
    "__version__",
    "export_conv2d_to_inference",
    "export_for_inference",
    "export_linear_to_inference",
    "has_cuda_ext",
    "load_ternary_inference_checkpoint",
    "quantize_",
    "quantize_model",
    "save_ternary_inference_checkpoint",
    "ternary_fake_quantize",
    "ternary_quantize",
    "ternary_quantize_ste",
]
