"""What is inside a ternary model: codes, sparsity, bits and bytes, layer by layer."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn import PackedLayer, TernaryConv2d, TernaryLinear
from bittorch.nn.ternary_linear import gathered


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One ternary layer; shares are of its weights, bytes are those of its packed form."""

    name: str
    kind: str
    shape: tuple[int, ...]
    negative: float
    zero: float
    positive: float
    bits_per_weight: float
    relative_error: float | None
    """``||w - codes * scale||^2 / ||w||^2``; None where the master weight is gone."""
    bytes: int
    """Codes, scales and bias."""


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """The ternary layers of a model, and what is left of it. ``str()`` is a table."""

    layers: tuple[LayerSummary, ...]
    other_bytes: int
    """Parameters and buffers outside these layers, in their own dtypes."""
    dense_bytes: int
    """The whole model with its ternary weights in float32."""

    @property
    def bytes(self) -> int:
        """The whole model, packed."""
        return self.other_bytes + sum(layer.bytes for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "shape", "-1 %", "0 %", "+1 %", "bits/weight", "rel. error", "bytes")
        rows = [
            (
                layer.name or "(model)",
                "x".join(map(str, layer.shape)),
                *(f"{100 * share:.1f}" for share in (layer.negative, layer.zero, layer.positive)),
                f"{layer.bits_per_weight:.2f}",
                "-" if layer.relative_error is None else f"{layer.relative_error:.3f}",
                f"{layer.bytes:,}",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        ]
        ratio = self.dense_bytes / self.bytes if self.bytes else 1.0
        lines.append(
            f"{len(self.layers)} ternary layers; {self.bytes:,} bytes packed, {self.other_bytes:,} of them elsewhere; "
            f"{ratio:.1f}x less than {self.dense_bytes:,} with float32 weights"
        )
        return "\n".join(lines)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _packed(module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Packed codes, scales and master weight of a ternary layer."""
    if isinstance(module, TernaryLinear | TernaryConv2d) and module.quantize and module.config.packs:
        return *module.quantize_packed(), gathered(module.weight).detach().flatten(1)
    if isinstance(module, PackedLayer):
        return module.weight_packed, module.scale, None
    return None


def _layer(name: str, module: nn.Module) -> LayerSummary | None:
    found = _packed(module)
    if found is None:
        return None
    w_packed, scale, weight = found
    columns = module.columns if isinstance(module, PackedLayer) else weight.shape[1]  # type: ignore[union-attr]
    codes = ops.ternary_unpack(w_packed, None, columns, torch.int8)
    error = None
    if weight is not None:
        dense = weight.double()
        quantized = ops.ternary_unpack(w_packed, scale, columns, torch.float32).double()
        norm = float(dense.square().sum())
        error = float((dense - quantized).square().sum()) / norm if norm else 0.0
    count = max(1, codes.numel())
    storage = _bytes(w_packed, scale)
    negative, zero, positive = (int((codes == code).sum()) / count for code in (-1, 0, 1))
    return LayerSummary(
        name=name,
        kind=type(module).__name__,
        shape=tuple(codes.shape),
        negative=negative,
        zero=zero,
        positive=positive,
        bits_per_weight=8 * storage / count,
        relative_error=error,
        bytes=storage + _bytes(module.bias),  # type: ignore[arg-type]
    )


def summary(model: nn.Module) -> ModelSummary:
    """Codes, sparsity, bits per weight, quantisation error and bytes of every ternary layer of a model.

    A layer that appears in several places counts once. Training layers are quantised as they stand now; those of method
    ttq have no packed form and count as they are.

    Args:
        model: with ternary layers, training or packed; others count as they are.

    Returns:
        `ModelSummary`; ``print`` shows it as a table.

    Raises:
        ValueError: a weight holds NaN or Inf.

    >>> print(bittorch.utils.summary(model))
    """
    layers: list[LayerSummary] = []
    others: dict[int, Tensor] = {}  # by identity: a tied tensor counts once, and also where one owner is not ternary
    dense = 0
    for name, module in model.named_modules():
        layer = _layer(name, module)
        if layer is None:
            others |= {id(t): t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
            continue
        layers.append(layer)
        dense += 4 * math.prod(layer.shape) + _bytes(module.bias)
    other = _bytes(*others.values())
    return ModelSummary(tuple(layers), other, other + dense)
