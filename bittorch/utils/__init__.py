"""Whole-model tools: export and checkpoints."""

from bittorch.utils.checkpoint import load_ternary_inference_checkpoint, save_ternary_inference_checkpoint
from bittorch.utils.export import export_conv2d_to_inference, export_for_inference, export_linear_to_inference

__all__ = [
    "export_conv2d_to_inference",
    "export_for_inference",
    "export_linear_to_inference",
    "load_ternary_inference_checkpoint",
    "save_ternary_inference_checkpoint",
]
