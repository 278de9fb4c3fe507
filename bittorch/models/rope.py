"""Rotary position embedding (RoPE): pairs of channels turned by an angle that grows with the position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bittorch.models.config import ModelConfig


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair of channels, ``theta^(-2 i / head_dim)``, scaled as the configuration says.

    ``linear`` divides all by ``factor``. ``llama3`` keeps wavelengths below ``original / high_freq_factor``,
    divides those above ``original / low_freq_factor`` by ``factor``, and blends in between. ``factors`` divides each by
    its own.

    Returns:
        float32 ``(head_dim / 2,)``.

    Source:
        RoFormer, arXiv:2104.09864; the Llama 3.1 model card for ``llama3``.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if not scaling:
        return frequencies
    kind = scaling["rope_type"]  # `ModelConfig` has checked it and what belongs to it
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies / torch.as_tensor(scaling["factors"], dtype=torch.float32)


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: enough turns within the original context to stay as it is
    return (1 - keep) * frequencies / factor + keep * frequencies


class Rotation:
    """Cosines and signed sines of some positions, as `rotate_` wants them.

    Args:
        frequencies: of `rope_frequencies`, on the device of the model.
        positions: ``(tokens,)`` integers.
        dtype: of the activations.
    """

    def __init__(self, frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> None:
        angles = positions.float().unsqueeze(-1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.stack((cos, cos), -2).to(dtype).unsqueeze(1)
        self.sin = torch.stack((-sin, sin), -2).to(dtype).unsqueeze(1)

    def rotate_(self, halves: Tensor) -> Tensor:
        """Turns ``(tokens, heads, 2, head_dim / 2)`` in place: channel i of the first half with i of the second."""
        swapped = halves.flip(-2)
        if halves.dtype == torch.float32:  # two roundings, as transformers has them: its logits, bit for bit
            return halves.mul_(self.cos).add_(swapped.mul_(self.sin))
        return halves.mul_(self.cos).addcmul_(swapped, self.sin)
