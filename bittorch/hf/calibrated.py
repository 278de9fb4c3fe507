"""Depth with planes that activations choose: a model that transformers has loaded dense, converted as a whole."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bittorch.hf.config import TernaryConfig
from bittorch.hf.experts import PackedExperts, is_fused
from bittorch.models.linear import linear_of
from bittorch.utils import quantize_


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ValueError for halves, whose masters and activations would be rounded."""
    if dtype != torch.float32:
        raise ValueError(
            f"calibrate runs the dense model on its masters, so it is loaded in float32, and dtype is {dtype}; give "
            "from_pretrained dtype=torch.float32, and call .to(dtype) on what it returns"
        )


def convert_(model: PreTrainedModel, chosen: Iterable[str], config: TernaryConfig) -> None:
    """Packs the chosen modules of a dense model by ``config.calibrate``, with `bittorch.quantize_`.

    Raises:
        ValueError, TypeError: as `bittorch.quantize_`; batches that no module takes.
    """
    layers: list[str] = []
    for name in sorted(chosen):
        module = model.get_submodule(name)
        if isinstance(module, Conv1D):
            module = linear_of(module.weight.detach().t().contiguous(), module.bias.detach())
        elif is_fused(module):
            module = PackedExperts.apart(module)
        model.set_submodule(name, module)
        layers += [
            f"{name}.{inner}" if inner else name for inner, m in module.named_modules() if isinstance(m, nn.Linear)
        ]
    own = model.config.quantization_config, model.hf_quantizer
    quantize_(model, config.ternary(), layers, depth=config.depth, calibrate=config.calibrate)
    model.config.quantization_config, model.hf_quantizer = own  # quantize_ makes others, of models without these


def without(config: TernaryConfig) -> TernaryConfig:
    """A copy that keeps no batches, for the model to hold."""
    config = copy.copy(config)
    config.calibrate = None
    return config
