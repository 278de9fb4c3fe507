"""What became ternary in a model, what did not, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList

from bittorch.nn import PackedLayer
from bittorch.nn.ternary_layer import TernaryLayer
from bittorch.utils.wrappers import named_layers

_NOTE = "_bittorch_left"  # attribute of a module that the caller of quantize_ left
_LEAST = 0.5  # share of the weights of linear layers, below which quantize_ warns
_Convolutions = nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose3d


@dataclasses.dataclass(frozen=True)
class LeftLayer:
    """A module whose own weights stay as they are."""

    name: str
    kind: str
    parameters: int
    reason: str
    wanted: bool
    """Whether the caller left it, by ``skip``, ``filter_fn``, ``config`` or ``depth``."""
    multiplies: bool
    """Whether it holds matrices that multiply activations; embeddings and norms do not."""


@dataclasses.dataclass(frozen=True, repr=False)
class ConversionReport:
    """What `bittorch.quantize_` returns; ``print`` shows it as a table.

    Attributes:
        converted: names of the layers that became ternary in this call.
        ternary: their weights and those of layers that were ternary before; tied ones count once.
        parameters: all parameters of the model.
        left: every other module that holds parameters, and why it stays.
    """

    converted: tuple[str, ...]
    ternary: int
    parameters: int
    left: tuple[LeftLayer, ...]

    @property
    def share(self) -> float:
        """Ternary weights, of all parameters."""
        return self.ternary / self.parameters if self.parameters else 0.0

    @property
    def linear_share(self) -> float:
        """Ternary weights, of all that multiply activations and that the caller did not leave."""
        others = sum(layer.parameters for layer in self.left if layer.multiplies and not layer.wanted)
        return self.ternary / (self.ternary + others) if self.ternary + others else 1.0

    @property
    def complaint(self) -> str | None:
        """What to warn of where less than half became ternary."""
        if not self.ternary or self.linear_share >= _LEAST:
            return None
        kinds: dict[tuple[str, str], int] = {}
        for layer in self.left:
            if layer.multiplies and not layer.wanted:
                kinds[layer.kind, layer.reason] = kinds.get((layer.kind, layer.reason), 0) + layer.parameters
        largest = sorted(kinds.items(), key=lambda item: -item[1])[:3]
        text = "; ".join(f"{kind}, {size:,} parameters: {reason}" for (kind, reason), size in largest)
        return (
            f"only {self.linear_share:.1%} of the weights that multiply activations are ternary; left are {text}. "
            "print(bittorch.utils.conversion_report(model)) lists all"
        )

    def __str__(self) -> str:
        layers = "1 layer became" if len(self.converted) == 1 else f"{len(self.converted)} layers became"
        lines = [
            f"{layers} ternary; ternary are {self.ternary:,} of {self.parameters:,} parameters ({self.share:.1%}), "
            f"{self.linear_share:.1%} of the weights that multiply activations and were to be converted"
        ]
        groups: dict[tuple[str, str], list[LeftLayer]] = {}
        for layer in self.left:
            groups.setdefault((layer.kind, layer.reason), []).append(layer)
        rows = sorted(((sum(x.parameters for x in found), *key, found) for key, found in groups.items()), key=_largest)
        if rows:
            lines.append("left as they are:")
        width = max((len(kind) for _, kind, *_ in rows), default=0)
        for size, kind, reason, found in rows:
            names = ", ".join(layer.name or "the model" for layer in found[:2])
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            lines.append(f"  {size:>13,}  {kind:<{width}}  {reason}: {names}{more}")
        return "\n".join(lines)

    __repr__ = __str__


def _largest(row: tuple[int, str, str, list[LeftLayer]]) -> tuple[int, str]:
    return -row[0], row[1]


def _reason(module: nn.Module, largest: int) -> tuple[str, bool]:
    """Why a module is no candidate, and whether its weights multiply activations; ``largest`` dimensions."""
    if isinstance(module, LazyModuleMixin):
        return "has no size yet; call the model once", True
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "attention reads this weight without calling the layer", True
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
        return "a subclass, which may compute something else", True
    if isinstance(module, ParametrizationList):
        return "a parametrised weight", True
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a table to look up, which multiplies nothing; quantize_ takes it by name", False
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase | _Convolutions | nn.Bilinear):
        return "this kind of layer has no ternary form", True
    if type(module).__name__ == "Conv1D" and largest == 2:
        return "the transposed linear layer of GPT-2 has no ternary form", True
    if largest >= 3:
        return "weights of several dimensions (fused experts) have no ternary form", True
    if largest == 2:
        return "matrices of its own, outside linear layers", True
    return "vectors: norms, biases, scales", False


def _plain_reason(module: nn.Module) -> tuple[str, bool]:
    if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d):
        return "not converted yet", True
    own = [t for t in module._parameters.values() if t is not None]
    return _reason(module, max(_dims(t) for t in own))


def _dims(parameter: Tensor) -> int:
    """Dimensions of more than one element; none is known of a parameter without a size."""
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return 2
    return sum(size > 1 for size in parameter.shape)


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, nn.parameter.UninitializedParameter) else parameter.numel()


def make_report(
    model: nn.Module,
    converted: Mapping[str, nn.Module],
    left_by_caller: Mapping[str, str],
    reasons: Mapping[str, str],
) -> ConversionReport:
    """The report about a model before its layers are exchanged.

    Args:
        model: as it is now.
        converted: the layers that become ternary, by name.
        left_by_caller: which argument left a module, by name; candidates and others.
        reasons: why other candidates are not among the converted, by name.
    """
    layers = list(named_layers(model))
    counted: set[int] = set()
    ternary = others = 0
    for name, module in layers:
        if isinstance(module, PackedLayer):
            if id(module.weight_packed) not in counted:
                counted.add(id(module.weight_packed))
                ternary += math.prod(module.weight.shape)
        elif name in converted or (isinstance(module, TernaryLayer) and module.quantize):
            weight = module._parameters.get("weight")
            if weight is not None and id(weight) not in counted:
                counted.add(id(weight))
                ternary += _size(weight)
    left: list[LeftLayer] = []
    for name, module in layers:
        own = {id(t): t for t in module._parameters.values() if t is not None and id(t) not in counted}
        counted |= own.keys()
        size = sum(map(_size, own.values()))
        is_ternary = name in converted or isinstance(module, TernaryLayer | PackedLayer)
        if is_ternary or not own:
            others += size
            continue
        reason, multiplies = _plain_reason(module)
        wanted = left_by_caller.get(name)
        left.append(
            LeftLayer(
                name=name,
                kind=type(module).__name__,
                parameters=size,
                reason=wanted or reasons.get(name, reason),
                wanted=wanted is not None,
                multiplies=multiplies,
            )
        )
    total = ternary + others + sum(layer.parameters for layer in left)
    return ConversionReport(tuple(converted), ternary, total, tuple(left))


def conversion_report(model: nn.Module) -> ConversionReport:
    """What is ternary in a model now, trained or packed, and what is not.

    What `bittorch.quantize_` was told to leave counts as left by the caller, in copies and exports of the model too.

    Args:
        model: any model.

    Returns:
        `ConversionReport`; ``print`` shows it as a table.

    >>> print(bittorch.utils.conversion_report(model))
    """
    layers = named_layers(model)
    return make_report(
        model, {}, {name: module.__dict__[_NOTE] for name, module in layers if _NOTE in vars(module)}, {}
    )


def note_left(model: nn.Module, left_by_caller: Mapping[str, str]) -> None:
    """Lets later reports know which modules the caller of `bittorch.quantize_` left, and by which argument."""
    for name, module in named_layers(model):
        if name in left_by_caller and module._parameters:
            module.__dict__[_NOTE] = left_by_caller[name]
