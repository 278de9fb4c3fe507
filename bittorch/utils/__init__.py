"""Whole-model tools: conversion, export, checkpoints and reports."""

from bittorch.utils.accuracy_doctor import AccuracyDoctor, Finding
from bittorch.utils.batch_norm import fold_batch_norm_
from bittorch.utils.calibration import Calibration
from bittorch.utils.checkpoint import load_ternary_inference_checkpoint, save_ternary_inference_checkpoint
from bittorch.utils.conversion_report import ConversionReport, LeftLayer, conversion_report
from bittorch.utils.convert import quantize_, quantize_model
from bittorch.utils.export import export_conv2d_to_inference, export_for_inference, export_linear_to_inference
from bittorch.utils.lens import Lens, lens
from bittorch.utils.summary import LayerSummary, ModelSummary, summary

__all__ = [
    "AccuracyDoctor",
    "Calibration",
    "ConversionReport",
    "Finding",
    "LayerSummary",
    "LeftLayer",
    "Lens",
    "ModelSummary",
    "conversion_report",
    "export_conv2d_to_inference",
    "export_for_inference",
    "export_linear_to_inference",
    "fold_batch_norm_",
    "lens",
    "load_ternary_inference_checkpoint",
    "quantize_",
    "quantize_model",
    "save_ternary_inference_checkpoint",
    "summary",
]
