"""What a part of the model is made of: one rule says it for loading, for saving, and for what a checkpoint must have.

A `Block` holds modules by name, and a `Rule` for each. Nothing else knows which tensors there are: `tensor_shapes`,
`fill`, `named_tensors` and `activation_bits` walk over the blocks of a model and ask their rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from bittorch.models.config import ModelConfig
from bittorch.models.hadamard import unrotated
from bittorch.models.linear import Concatenated, NormedParts, linear_of, split_packed
from bittorch.models.norm import NormFromOne, RMSNorm
from bittorch.models.packed_weight import BlockWeight, PackedWeight
from bittorch.nn import TernaryLinearInference
from bittorch.quant.ternary import no_trits

Named = Iterator[tuple[str, Tensor | PackedWeight | BlockWeight]]


class Source(Protocol):
    """Where modules get their weights: `bittorch.models.load.Loader`. Names are canonical, without ``.weight``."""

    def linear(self, names: Sequence[str], biased: Sequence[bool]) -> nn.Module:
        """The matrices of these names, which have one input, as one layer."""
        ...

    def vector(self, name: str, precise: bool = False) -> Tensor:
        """A weight that stays dense, of a norm or a router, in memory of its own; ``precise`` is in float32."""
        ...

    def values(self, name: str, precise: bool = False) -> Tensor:
        """The same of any tensor, by its whole name."""
        ...

    def embedding(self, name: str) -> nn.Module: ...

    def head(self, name: str, embedding: nn.Module | None) -> nn.Module:
        """The head; ``embedding`` is what it may share its weight with."""
        ...


class Rule:
    """One module of a block, and the tensors of a checkpoint that it is made of."""

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Canonical names of the tensors, ``prefix`` before each, and their shapes."""
        raise NotImplementedError

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Module:
        """The module with its weights; ``owner`` is the block that will hold it."""
        raise NotImplementedError

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        """The inverse of `load`."""
        raise NotImplementedError

    def activation_bits(self, module: nn.Module, prefix: str) -> dict[str, int | None]:
        """Of the ternary tensors of a module, by their names."""
        return {}

    def products(self, prefix: str) -> dict[str, int]:
        """The weights that `Source.linear` or `Source.head` makes a product of, and their columns."""
        return {}

    def shared(self, module: nn.Module, prefix: str, owner: nn.Module) -> str | None:
        """The name of the tensor of another module of ``owner`` that this one uses; None where it has its own."""
        return None


class Part(NamedTuple):
    """A matrix of a checkpoint: its name, its rows, and whether it has a bias."""

    name: str
    rows: int
    bias: bool = False


@dataclasses.dataclass(frozen=True)
class Linear(Rule):
    """Matrices with one input as one product, whose outputs stand side by side: q, k and v; gate and up; or one alone.

    A bias that only some of them have is 0 for the others.
    """

    columns: int
    parts: tuple[Part, ...]

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            found[f"{prefix}{part.name}.weight"] = (part.rows, self.columns)
            if part.bias:
                found[f"{prefix}{part.name}.bias"] = (part.rows,)
        return found

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Module:
        return source.linear([prefix + part.name for part in self.parts], [part.bias for part in self.parts])

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        module = unrotated(module)
        if isinstance(module, Concatenated):
            for own, part in zip(module.parts, self.parts, strict=True):
                yield from Linear(self.columns, (part,)).tensors(own, prefix)
            return
        rows = [part.rows for part in self.parts]
        if isinstance(module, nn.Linear):
            weights: Sequence[Tensor | PackedWeight] = module.weight.detach().split(rows)
        else:
            assert isinstance(module, TernaryLinearInference)
            fused = PackedWeight(module.weight_packed, module.scale, module.in_features, module.depth)
            weights = split_packed(fused, rows)
        biases = [None] * len(rows) if module.bias is None else module.bias.detach().split(rows)
        for part, weight, bias in zip(self.parts, weights, biases, strict=True):
            yield f"{prefix}{part.name}.weight", weight
            if part.bias:
                assert bias is not None
                yield f"{prefix}{part.name}.bias", bias

    def activation_bits(self, module: nn.Module, prefix: str) -> dict[str, int | None]:
        module = unrotated(module)
        parts = map(unrotated, module.parts) if isinstance(module, Concatenated) else [module] * len(self.parts)
        return {
            f"{prefix}{part.name}.weight": no_trits(own.activation_bits, "a file of a language model")
            for own, part in zip(parts, self.parts, strict=True)
            if isinstance(own, TernaryLinearInference)
        }

    def products(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}{part.name}.weight": self.columns for part in self.parts}


@dataclasses.dataclass(frozen=True)
class NormedLinear(Linear):
    """`Linear` each of whose matrices has a norm of its input, ``<matrix>.norm``: one product for each."""

    eps: float
    fuse: bool

    @classmethod
    def of(cls, config: ModelConfig, columns: int, parts: tuple[Part, ...]) -> Linear:
        """What the configuration calls for."""
        if config.input_norm_eps:
            return cls(columns, parts, config.input_norm_eps, config.fuse_norms)
        return Linear(columns, parts)

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        norms = {f"{prefix}{part.name}.norm.weight": (self.columns,) for part in self.parts}
        return {**super().shapes(prefix), **norms}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Module:
        parts = [Linear(self.columns, (part,)).load(source, prefix, owner) for part in self.parts]
        norms = [self._norm(part).load(source, prefix, owner) for part in self.parts]
        return NormedParts(parts, norms, self.fuse)

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        assert isinstance(module, NormedParts)
        for own, norm, part in zip(module.parts, module.norms, self.parts, strict=True):
            yield from Linear(self.columns, (part,)).tensors(own, prefix)
            yield from self._norm(part).tensors(norm, prefix)

    def activation_bits(self, module: nn.Module, prefix: str) -> dict[str, int | None]:
        assert isinstance(module, NormedParts)
        found: dict[str, int | None] = {}
        for own, part in zip(module.parts, self.parts, strict=True):
            found |= Linear(self.columns, (part,)).activation_bits(own, prefix)
        return found

    def _norm(self, part: Part) -> Norm:
        return Norm(f"{part.name}.norm", self.columns, self.eps)


@dataclasses.dataclass(frozen=True)
class Experts(Rule):
    """The same `Linear` of each of ``count`` experts, in a `torch.nn.ModuleList`.

    Each expert's tensors have its number in their names. Files that have all experts in one tensor of three dimensions
    are taken apart and put together by `bittorch.models.io.stacks`.
    """

    count: int
    linear: Linear

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {key: shape for own in self._prefixes(prefix) for key, shape in self.linear.shapes(own).items()}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.ModuleList:
        return nn.ModuleList(self.linear.load(source, own, owner) for own in self._prefixes(prefix))

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        assert isinstance(module, nn.ModuleList)
        for expert, own in zip(module, self._prefixes(prefix), strict=True):
            yield from self.linear.tensors(expert, own)

    def activation_bits(self, module: nn.Module, prefix: str) -> dict[str, int | None]:
        assert isinstance(module, nn.ModuleList)
        found: dict[str, int | None] = {}
        for expert, own in zip(module, self._prefixes(prefix), strict=True):
            found |= self.linear.activation_bits(expert, own)
        return found

    def products(self, prefix: str) -> dict[str, int]:
        return {key: columns for own in self._prefixes(prefix) for key, columns in self.linear.products(own).items()}

    def _prefixes(self, prefix: str) -> list[str]:
        return [f"{prefix}experts.{expert}." for expert in range(self.count)]


@dataclasses.dataclass(frozen=True)
class Router(Rule):
    """A row of ``columns`` channels for each of ``rows`` experts; dense, whatever becomes of other matrices.

    With ``precise`` it is in float32, whatever the dtype of the model is.
    """

    name: str
    rows: int
    columns: int
    precise: bool = False

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}{self.name}.weight": (self.rows, self.columns)}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Linear:
        return linear_of(source.vector(prefix + self.name, self.precise))

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        assert isinstance(module, nn.Linear)
        yield f"{prefix}{self.name}.weight", module.weight.detach()


@dataclasses.dataclass(frozen=True)
class Norm(Rule):
    """A `RMSNorm` of ``size`` channels; with ``from_one`` its weight is stored less 1."""

    name: str
    size: int
    eps: float
    from_one: bool = False

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}{self.name}.weight": (self.size,)}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> RMSNorm:
        norm = (NormFromOne if self.from_one else RMSNorm)(self.size, self.eps)
        norm.fill(source.vector(prefix + self.name))
        return norm

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        assert isinstance(module, RMSNorm)
        yield f"{prefix}{self.name}.weight", module.stored


class Block(nn.Module):
    """A part of the model that says by its rules which tensors it is made of; `fill` gives it their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.rules: dict[str, Rule] = {}

    def hold(self, name: str, rule: Rule) -> None:
        """Announces the module ``name``, which is None before `fill`."""
        self.rules[name] = rule
        self.register_module(name, None)

    def hold_norm(self, config: ModelConfig, name: str, size: int, wanted: bool = True) -> None:
        """Announces a norm of the model's kind; without ``wanted``, nothing stands in its place."""
        if wanted:
            self.hold(name, Norm(name, size, config.rms_norm_eps, config.norms_from_one))
        else:
            self.add_module(name, nn.Identity())


def walk(model: nn.Module) -> Iterator[tuple[Block, str, Rule, str]]:
    """Every block of a model, the name of a module in it, its rule, and what stands before the names of its tensors."""
    for path, block in list(model.named_modules()):
        if isinstance(block, Block):
            for name, rule in block.rules.items():
                yield block, name, rule, f"model.{path}." if path else ""


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The canonical name of every tensor, biases included, and its shape."""
    return {key: shape for _, _, rule, prefix in walk(model) for key, shape in rule.shapes(prefix).items()}


def products(model: nn.Module) -> dict[str, int]:
    """The canonical name of every weight of a product, a tied head's too, and its columns."""
    return {key: columns for _, _, rule, prefix in walk(model) for key, columns in rule.products(prefix).items()}


def fill(model: nn.Module, source: Source) -> None:
    """Gives every block its modules, once each, in the order of the model."""
    for block, name, rule, prefix in walk(model):
        setattr(block, name, rule.load(source, prefix, block))


def named_tensors(model: nn.Module) -> Named:
    """Every tensor of the model by its canonical name, fused layers apart."""
    for block, name, rule, prefix in walk(model):
        if rule.shared(getattr(block, name), prefix, block) is None:
            yield from rule.tensors(getattr(block, name), prefix)


def activation_bits(model: nn.Module) -> dict[str, int | None]:
    """Of every ternary tensor, by its canonical name."""
    found: dict[str, int | None] = {}
    for block, name, rule, prefix in walk(model):
        own = rule.activation_bits(getattr(block, name), prefix)
        shared = rule.shared(getattr(block, name), prefix, block)
        for key, bits in own.items():
            found[shared or key] = bits
    return found
