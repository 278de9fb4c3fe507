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
    divides those above ``original / low_freq_factor`` by ``factor``, and blends in between. ``yarn`` keeps channels
    that turn more than ``beta_fast`` (32) times within the original context, divides those below ``beta_slow`` (1)
    turns by ``factor``, and blends linearly by channel. ``factors`` divides each by its own. ``longrope`` divides each
    by its ``long_factor`` where the context is longer than the original one, else by its ``short_factor``: at all
    positions, because keys in a cache are rotated once.
    Where a part of a head is rotated, its size stands for head_dim.

    Returns:
        float32 ``(head_dim / 2,)``.

    Source:
        RoFormer, arXiv:2104.09864; the Llama 3.1 model card for ``llama3``; YaRN, arXiv:2309.00071; LongRoPE,
        arXiv:2402.13753, with the choice of the code of MiniCPM4.
    """
    exponent = torch.arange(0, config.rotated, 2, dtype=torch.int64).float() / config.rotated
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if not scaling:
        return frequencies
    kind = scaling["rope_type"]  # `ModelConfig` has checked it and what belongs to it
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    if kind == "yarn":
        return _yarn(frequencies, scaling, config)
    name = "factors"
    if kind == "longrope":
        extended = config.max_positions > scaling["original_max_position_embeddings"]
        name = "long_factor" if extended else "short_factor"
    return frequencies / torch.as_tensor(scaling[name], dtype=torch.float32)


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: enough turns within the original context to stay as it is
    return (1 - keep) * frequencies / factor + keep * frequencies


def _yarn(frequencies: Tensor, scaling: Mapping[str, Any], config: ModelConfig) -> Tensor:
    original = scaling["original_max_position_embeddings"]

    def channel(turns: float) -> float:
        """That turns so often within the original context."""
        wanted = math.log(original / (turns * 2 * math.pi))
        return config.rotated * wanted / (2 * math.log(config.rope_theta))

    low, high = channel(scaling.get("beta_fast", 32)), channel(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotated - 1)
    ramp = (torch.arange(len(frequencies), dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    divided = ramp.clamp(0, 1)
    return frequencies / float(scaling["factor"]) * divided + frequencies * (1 - divided)


def rope_magnitude(config: ModelConfig) -> float:
    """What cosines and sines are multiplied by: 1, but for ``yarn`` and ``longrope``.

    There it is ``attention_factor``. Without one it is for ``yarn`` ``m(mscale) / m(mscale_all_dim)`` of
    ``m(x) = 1 + x ln(factor) / 10``, and without these two ``m(1)``; for ``longrope``
    ``sqrt(1 + ln(factor) / ln(original))``, where a missing ``factor`` is the context in original ones. A factor up to
    1 changes nothing.
    """
    scaling = config.rope_scaling
    if not scaling or scaling["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    if scaling["rope_type"] == "longrope":
        original = scaling["original_max_position_embeddings"]
        factor = scaling.get("factor", config.max_positions / original)
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    def m(x: float) -> float:
        return 1.0 if scaling["factor"] <= 1 else 0.1 * x * math.log(scaling["factor"]) + 1.0

    both = "mscale" in scaling and "mscale_all_dim" in scaling
    return m(scaling["mscale"]) / m(scaling["mscale_all_dim"]) if both else m(1.0)


class Rotation:
    """Cosines and signed sines of some positions, as `rotate_` wants them.

    Attributes:
        angles: cosines and sines as `bittorch.ops.rotary_store` takes them, ``(tokens, head_dim)``.
        local: the rotation of layers with a window; None where a model has one for all.

    Args:
        frequencies: of `rope_frequencies`, on the device of the model.
        positions: ``(tokens,)`` integers.
        dtype: of the activations.
        magnitude: of `rope_magnitude`.
    """

    def __init__(self, frequencies: Tensor, positions: Tensor, dtype: torch.dtype, magnitude: float = 1.0) -> None:
        angles = positions.float().unsqueeze(-1) * frequencies
        cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
        self.cos = torch.stack((cos, cos), -2).to(dtype).unsqueeze(1)
        self.sin = torch.stack((-sin, sin), -2).to(dtype).unsqueeze(1)
        self.angles = self.cos.flatten(1), self.sin.flatten(1)
        self.local: Rotation | None = None

    def of(self, window: int) -> Rotation:
        """That of a layer with this window, 0 for none."""
        return self.local if window and self.local is not None else self

    def rotate_(self, halves: Tensor) -> Tensor:
        """Turns ``(tokens, heads, 2, head_dim / 2)`` in place: channel i of the first half with i of the second."""
        swapped = halves.flip(-2)
        if halves.dtype == torch.float32:  # two roundings, as transformers has them: its logits, bit for bit
            return halves.mul_(self.cos).add_(swapped.mul_(self.sin))
        return halves.mul_(self.cos).addcmul_(swapped, self.sin)
