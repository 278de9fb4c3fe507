"""The rules of a vocabulary's tables: an embedding, and the head that may share its rows."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from bittorch.models.blocks import BlockEmbedding, BlockLinear
from bittorch.models.int8_head import Int8Head
from bittorch.models.packed_weight import BlockWeight, PackedWeight
from bittorch.models.rules import Linear, Named, Part, Rule, Source
from bittorch.nn import TernaryEmbeddingInference


@dataclasses.dataclass(frozen=True)
class Embedding(Rule):
    """A row of ``columns`` channels for each of ``rows`` tokens."""

    name: str
    rows: int
    columns: int

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {f"{prefix}{self.name}.weight": (self.rows, self.columns)}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Module:
        return source.embedding(prefix + self.name)

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        weight: Tensor | PackedWeight | BlockWeight
        if isinstance(module, BlockEmbedding):
            weight = module.weight
        elif isinstance(module, TernaryEmbeddingInference):
            weight = PackedWeight(module.weight_packed, module.scale, module.embedding_dim, module.depth)
        else:
            assert isinstance(module, nn.Embedding)
            weight = module.weight.detach()
        yield f"{prefix}{self.name}.weight", weight


@dataclasses.dataclass(frozen=True)
class Head(Rule):
    """From the last layer to logits. ``tied`` names the embedding whose weight it is, in the same block.

    A tied head that has been converted into planes is a tensor of its own when it is saved. The activation bits of one
    that multiplies the packed rows of its embedding are written with these.
    """

    name: str
    rows: int
    columns: int
    tied: str | None

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {} if self.tied else self._linear.shapes(prefix)

    def load(self, source: Source, prefix: str, owner: nn.Module) -> nn.Module:
        if self.tied is None:
            return source.head(prefix + self.name, None)
        return source.head(prefix + self.tied, self._embedding(owner))

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        module = _exact(module)
        if isinstance(module, BlockLinear):
            yield f"{prefix}{self.name}.weight", module.weight
        else:
            yield from self._linear.tensors(module, prefix)

    def activation_bits(self, module: nn.Module, prefix: str) -> dict[str, int | None]:
        return self._linear.activation_bits(_exact(module), prefix)

    def products(self, prefix: str) -> dict[str, int]:
        return self._linear.products(prefix)

    def shared(self, module: nn.Module, prefix: str, owner: nn.Module) -> str | None:
        if self.tied is None:
            return None
        same = _weight(_exact(module)) is _weight(self._embedding(owner))
        return f"{prefix}{self.tied}.weight" if same else None

    def _embedding(self, owner: nn.Module) -> nn.Module:
        assert self.tied is not None
        return owner.get_submodule(self.tied.rpartition(".")[2])

    @property
    def _linear(self) -> Linear:
        return Linear(self.columns, (Part(self.name, self.rows),))


def _exact(head: nn.Module) -> nn.Module:
    """The head as it is stored."""
    return head.exact if isinstance(head, Int8Head) else head


def _weight(module: nn.Module) -> Tensor | None:
    """What a dense or a packed layer multiplies or looks up."""
    held = {**module._buffers, **module._parameters}
    return next((held[name] for name in ("weight", "weight_packed", "blocks") if name in held), None)
