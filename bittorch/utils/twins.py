"""Which layers of a model can become ternary, and what each kind becomes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bittorch.nn import TernaryConv1d, TernaryConv2d, TernaryConvTranspose2d, TernaryEmbedding, TernaryLinear
from bittorch.utils.patterns import matches_any
from bittorch.utils.wrappers import named_layers

# Subclasses are left alone: they may compute something else.
TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: TernaryLinear.from_linear,
    nn.Conv1d: TernaryConv1d.from_conv1d,
    nn.Conv2d: TernaryConv2d.from_conv2d,
    nn.ConvTranspose2d: TernaryConvTranspose2d.from_conv_transpose2d,
    nn.Embedding: TernaryEmbedding.from_embedding,
}


def candidates(model: nn.Module, patterns: list[str]) -> dict[str, nn.Module]:
    """Each layer once, by its first name in the unwrapped model; embeddings where one of the patterns names them."""
    return {
        name: module
        for name, module in named_layers(model)
        if type(module) in TWINS and (type(module) is not nn.Embedding or _named(name, patterns))
    }


def _named(name: str, patterns: list[str]) -> bool:
    """Whether a pattern matches a name and ends in its last part, as ``"*.embed"`` and no ``"*"`` does."""
    last = name.rpartition(".")[2]
    return matches_any(name, [pattern for pattern in patterns if pattern.rpartition(".")[2] == last])
