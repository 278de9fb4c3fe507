"""Planes of a dense language model that are chosen by its activations on a text."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bittorch.models.language_model import LanguageModel
from bittorch.models.load import CONVERTED_ACTIVATION_BITS, default_group_size
from bittorch.models.rules import Router, walk
from bittorch.models.tables import Head
from bittorch.quant import TernaryQuantConfig
from bittorch.utils.calibration import Calibration
from bittorch.utils.conversion_report import ConversionReport
from bittorch.utils.convert import quantize_

WINDOWS, LENGTH = 32, 512


def text_windows(model: LanguageModel, text: str, count: int = WINDOWS, length: int = LENGTH) -> list[Tensor]:
    """Windows of tokens ``(1, length)``, at even distances over a text; without special tokens.

    Args:
        model: with a tokenizer.
        text: of any length; one with fewer than ``count * length`` tokens gives the whole windows that it has, and a
            single one of all its tokens where it is shorter than one.
        count, length: at least 1 and 2; ``length`` at most the model's context.

    Raises:
        ValueError: a model without tokenizer, numbers out of range, a text of fewer than 2 tokens.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; give token numbers as batches instead")
    if count < 1 or not 2 <= length <= model.config.max_positions:
        raise ValueError(
            f"windows must be at least 1, of 2 to {model.config.max_positions} tokens, the model's context, "
            f"got {count} of {length}"
        )
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens; give one of many windows")
    count, length = max(1, min(count, len(ids) // length)), min(length, len(ids))
    last = len(ids) - length
    begins = [last * i // max(1, count - 1) for i in range(count)]
    return [torch.tensor([ids[begin : begin + length]], device=model.device) for begin in begins]


def calibrate_(
    model: LanguageModel, calibration: Calibration, *, depth: int, group_size: int | None = None
) -> ConversionReport:
    """Converts the dense matrices of the layers of a language model in place, as `LoadOptions` of this depth does, with
    `bittorch.Calibration` instead of rounding to nearest. Embedding, head and routers stay as they are.

    Args:
        model: with dense layers; those that are ternary stay.
        calibration: batches are token numbers ``(rows, tokens)``, such as those of `text_windows`.
        depth, group_size: as of `bittorch.models.LoadOptions`.

    Raises:
        ValueError: as `bittorch.quantize_`; a model without dense layers.
    """
    configs = {}
    for name, layer in _dense_layers(model):
        size = default_group_size(depth, layer.in_features) if group_size is None else group_size
        configs[name] = TernaryQuantConfig(
            granularity="group" if size else "channel",
            group_size=size or None,
            activation_bits=CONVERTED_ACTIVATION_BITS,
        )
    if not configs:
        raise ValueError("the model has no dense layer to convert; its matrices are ternary already")
    return quantize_(model, configs, list(configs), depth=depth, calibrate=calibration)


def _dense_layers(model: LanguageModel) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of layers, by their names as modules."""
    kept = {
        id(part)
        for block, name, rule, _ in walk(model)
        if isinstance(rule, Router | Head)
        for part in getattr(block, name).modules()
    }
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) not in kept:
            yield name, module
