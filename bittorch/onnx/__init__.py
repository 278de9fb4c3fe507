"""Packed models as ONNX files, and 2-bit ONNX products as packed layers.

>>> import bittorch.onnx
>>> packed = bittorch.export_for_inference(model)
>>> print(bittorch.onnx.export(packed, x, "model.onnx", format="exact"))
>>> layers = bittorch.onnx.load_matmulnbits("model.onnx")

Needs onnx, onnxscript and onnxruntime, of the extra ``onnx``. What is exact where: docs/guide/onnx.md.
"""

try:
    import onnx  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"bittorch.onnx needs onnx, onnxscript and onnxruntime; pip install 'bittorch[onnx]' brings them ({error})"
    ) from None

from bittorch.onnx.export import export
from bittorch.onnx.read import load_matmulnbits
from bittorch.onnx.report import OnnxReport

__all__ = ["OnnxReport", "export", "load_matmulnbits"]
