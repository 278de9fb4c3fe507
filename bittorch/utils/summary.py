"""What is inside a ternary model: codes, sparsity, bits and bytes, layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn

from bittorch import ops
from bittorch.nn import PackedLayer, TernaryLinearInference
from bittorch.nn.ternary_conv_transpose2d_infer import swapped
from bittorch.nn.ternary_layer import TernaryLayer, gathered
from bittorch.nn.weight_stand_in import WeightStandIn
from bittorch.quant.trit_planes import unpack_trit_planes
from bittorch.utils.calls import warn_of_uncalled
from bittorch.utils.export import packed_codes, stored_as
from bittorch.utils.health import MOSTLY_ZERO, silent_share, warn_of_health, why_silent
from bittorch.utils.wrappers import named_layers, unwrapped


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
    depth: int = 1
    """Ternary planes of a weight; the shares of codes are those of all planes."""
    dense_bits: float = 0.0
    """Bits per weight if each byte held five trits and all planes one scale, 1.6 per plane where rows are long."""
    gain: float | None = None
    """``||codes * scale|| / ||w||``; None where the master weight is gone."""


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """The ternary layers of a model, and what is left of it. ``str()`` is a table."""

    layers: tuple[LayerSummary, ...]
    other_bytes: int
    """Parameters and buffers outside these layers, in their own dtypes."""
    dense_bytes: int
    """The whole model with its ternary weights in float32; tied ones count once."""
    shared_bytes: int = 0
    """Codes and scales that a layer shares with one before it. They are part of its bytes and are stored once."""

    @property
    def gain(self) -> float | None:
        """The product of the gains of all layers; None where a layer has none. Without normalisation, signals grow or
        shrink by this much compared with a model that multiplies by the masters."""
        gains = [layer.gain for layer in self.layers]
        return None if None in gains or not gains else math.prod(gain for gain in gains if gain is not None)

    @property
    def bytes(self) -> int:
        """The whole model, packed."""
        return self.other_bytes + sum(layer.bytes for layer in self.layers) - self.shared_bytes

    def __str__(self) -> str:
        codes, sizes, quality = ("-1 %", "0 %", "+1 %"), ("bits/weight", "5 trits/byte"), ("|Q|/|W|", "rel. error")
        head = ("layer", "shape", "depth", *codes, *sizes, *quality, "bytes")
        rows = [
            (
                layer.name or "(model)",
                "x".join(map(str, layer.shape)),
                str(layer.depth),
                *(f"{100 * share:.1f}" for share in (layer.negative, layer.zero, layer.positive)),
                f"{layer.bits_per_weight:.2f}",
                f"{layer.dense_bits:.2f}",
                "-" if layer.gain is None else f"{layer.gain:.3f}",
                "-" if layer.relative_error is None else f"{layer.relative_error:.3g}",
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
        if self.gain is not None:
            lines.append(f"product of |Q|/|W|: {self.gain:.3g}")
        return "\n".join(lines)


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _packed(module: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Packed codes, scales and master weight of a ternary layer."""
    if isinstance(module, TernaryLayer) and module.quantize and module.config.packs:
        return *packed_codes(module, name, "summarise"), module._filters(gathered(module.weight).detach()).flatten(1)
    if isinstance(module, PackedLayer):
        return module.weight_packed, module.scale, None
    return None


def _dense_weight(reference: nn.Module, name: str, shape: tuple[int, int]) -> Tensor | None:
    """The floating weight of the layer of that name as rows, None where it has none."""
    try:
        module = reference.get_submodule(name)
    except AttributeError:
        return None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(weight, WeightStandIn):
        return None
    dense = gathered(weight).detach()
    rows = (swapped(dense, module.groups) if isinstance(module, nn.ConvTranspose2d) else dense).flatten(1)
    if tuple(rows.shape) != shape:
        raise ValueError(f"{name or 'the model'} has weights {shape}, but {tuple(rows.shape)} in the reference")
    return rows


def _layer(name: str, module: nn.Module, reference: nn.Module | None, silent: dict[str, str]) -> LayerSummary | None:
    """The summary of a layer, None for one that is not ternary; adds to ``silent`` what to warn of."""
    found = _packed(module, name)
    if found is None:
        return None
    w_packed, scale, weight = found
    depth = module.depth if isinstance(module, PackedLayer) else 1
    columns = module.columns if isinstance(module, PackedLayer) else weight.shape[1]  # type: ignore[union-attr]
    codes = ops.ternary_unpack(w_packed, None, columns, torch.int8)
    shape = len(codes) // depth, columns
    if weight is None and reference is not None:
        weight = _dense_weight(reference, name, shape)
    if depth == 1 and (share := silent_share(codes, weight)) > MOSTLY_ZERO:
        silent[name] = why_silent(module, share)
    error = gain = None
    if weight is not None:
        dense = weight.double()
        quantized = unpack_trit_planes(w_packed, scale, depth, columns, torch.float64)
        norm = float(dense.square().sum())
        error = float((dense - quantized).square().sum()) / norm if norm else 0.0
        gain = (float(quantized.square().sum()) / norm) ** 0.5 if norm else 1.0
    trits, weights = max(1, codes.numel()), max(1, math.prod(shape))
    storage = _bytes(w_packed, scale)
    five_a_byte = 8 * len(codes) * math.ceil(columns / 5) + 32 * max(1, scale.numel() // depth)
    negative, zero, positive = (int((codes == code).sum()) / trits for code in (-1, 0, 1))
    return LayerSummary(
        name=name,
        kind=type(module).__name__,
        shape=shape,
        negative=negative,
        zero=zero,
        positive=positive,
        bits_per_weight=8 * storage / weights,
        relative_error=error,
        bytes=storage + _bytes(module.bias),  # type: ignore[arg-type]
        depth=depth,
        dense_bits=five_a_byte / weights,
        gain=gain,
    )


def summary(model: nn.Module, reference: nn.Module | None = None) -> ModelSummary:
    """Codes, sparsity, bits per weight, quantisation error and bytes of every ternary layer of a model.

    A layer that appears in several places counts once. Training layers are quantised as they stand now; those of method
    ttq have no packed form and count as they are.

    Args:
        model: with ternary layers, training or packed; others count as they are.
        reference: the model before it was packed: a packed layer's error is against the weight of the same name there.

    Returns:
        `ModelSummary`; ``print`` shows it as a table.

    Raises:
        ValueError: a weight holds NaN or Inf, is on the meta device, or has another shape in the reference.

    Warns:
        UserWarning: layers that were never called though others were, so the model reads their weights itself; layers
            with hardly a code but 0; less than half of the weights that multiply activations are ternary.

    >>> print(bittorch.utils.summary(model))
    """
    warn_of_uncalled(model, stacklevel=3)
    reference = None if reference is None else unwrapped(reference)
    layers: list[LayerSummary] = []
    others: dict[int, Tensor] = {}  # by identity: a tied tensor counts once, and also where one owner is not ternary
    weights: dict[Hashable, int] = {}
    stored: set[Hashable] = set()
    silent: dict[str, str] = {}
    biases = shared = 0
    for name, module in named_layers(model):
        layer = _layer(name, module, reference, silent)
        if layer is None:
            others |= {id(t): t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
            continue
        assert isinstance(module, TernaryLayer | PackedLayer)
        layers.append(layer)
        biases += _bytes(module.bias)
        key = stored_as(module)
        if key in stored:
            shared += layer.bytes - _bytes(module.bias)
        stored.add(key)
        master = module._parameters.get("weight")
        weights[key if master is None else id(master)] = 4 * math.prod(layer.shape)
    warn_of_health(model, silent, stacklevel=3)
    other = _bytes(*others.values())
    dense = sum(size for key, size in weights.items() if key not in others)
    return ModelSummary(tuple(layers), other, other + dense + biases, shared)


@dataclasses.dataclass(frozen=True)
class _LinearSizes:
    """Weights of one linear layer, where they are stored, and bytes."""

    kind: str
    weights: int
    codes_or_weights: int
    scales: int
    bias: int


def _linear_sizes(model: nn.Module) -> Iterator[_LinearSizes]:
    for module in model.modules():
        if isinstance(module, TernaryLinearInference):
            weights = module.out_features * module.in_features
            sizes = _bytes(module.weight_packed), _bytes(module.scale), _bytes(module.bias)
            yield _LinearSizes("packed_ternary", weights, *sizes)
        elif isinstance(module, nn.Linear):
            kind = "fp32" if module.weight.element_size() >= 4 else "fp16"
            yield _LinearSizes(kind, module.weight.numel(), _bytes(module.weight), 0, _bytes(module.bias))


def count_ternary_params(model: nn.Module) -> dict[str, int]:
    """Weights of the linear layers by storage: ``fp32``, ``fp16`` (bfloat16 too), ``packed_ternary``, ``total``.

    An older, shorter form of `summary`. A `bittorch.TernaryLinear` in training counts by its master weight.
    """
    counts = dict.fromkeys(("fp32", "fp16", "packed_ternary", "total"), 0)
    for layer in _linear_sizes(model):
        counts[layer.kind] += layer.weights
        counts["total"] += layer.weights
    return counts


def get_model_memory_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the linear layers by storage: those of `count_ternary_params`, and ``scales``; ``total`` has biases.

    An older, shorter form of `summary`, which counts the whole model and tied weights once.
    """
    sizes = dict.fromkeys(("fp32", "fp16", "packed_ternary", "scales", "total"), 0)
    for layer in _linear_sizes(model):
        sizes[layer.kind] += layer.codes_or_weights
        sizes["scales"] += layer.scales
        sizes["total"] += layer.codes_or_weights + layer.scales + layer.bias
    return sizes
