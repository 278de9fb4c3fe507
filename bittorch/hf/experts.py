"""Experts whose weights transformers holds in tensors of three dimensions, as packed layers: one for each projection.

Names are those of checkpoints that keep experts apart, ``experts.<number>.gate_proj``, ``up_proj`` and ``down_proj``,
which `bittorch.models.LanguageModel` has too. A scale of a tensor is one of a projection of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate

from bittorch.models.linear import linear_of
from bittorch.nn import TernaryLinearInference

GATE_UP, DOWN = "gate_up_proj", "down_proj"
# What `use_experts_implementation` says of a class whose forward is that of `PackedExperts`.
_FORM = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}


def is_fused(module: nn.Module) -> bool:
    """Whether a module is experts that `PackedExperts` can stand for."""
    own = dict(module.named_parameters(recurse=False))
    return (
        own.keys() == {GATE_UP, DOWN}
        and all(parameter.dim() == 3 for parameter in own.values())
        and all(getattr(module, name, None) == value for name, value in _FORM.items())
        and getattr(type(module), "_apply_gate", None) is _default_apply_gate
        and not list(module.buffers(recurse=False))
    )


def widths(module: nn.Module) -> tuple[int, int]:
    """Columns of the projections to the inner size, and of those from it."""
    gate_up, down = module.gate_up_proj, module.down_proj
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)
    return gate_up.shape[2], down.shape[2]


def count_of(module: nn.Module) -> int:
    """The number of experts."""
    return len(module.gate_up_proj)  # type: ignore[arg-type]


def matrices(key: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The projections in a fused tensor by name, ``<number>.gate_proj`` and so on, each ``(rows, columns)``."""
    for number, expert in enumerate(weight):
        if key == DOWN:
            yield f"{number}.{DOWN}", expert
        else:
            gate, up = expert.chunk(2)
            yield f"{number}.gate_proj", gate
            yield f"{number}.up_proj", up


class Expert(nn.Module):
    """One of them: three layers, which `PackedExperts` calls."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj


class PackedExperts(nn.Module):
    """``sum_e w_e down_e(act(gate_e(x)) * up_e(x))`` over the experts of a token, in rising order of their numbers.

    Args:
        fused: the experts of transformers, also on the meta device; their weights are not read.
        layers: the layer of each projection, by its name.
    """

    def __init__(self, fused: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.num_experts, parts = count_of(fused), ("gate_proj", "up_proj", "down_proj")
        for number in range(self.num_experts):
            self.add_module(str(number), Expert(*(layers[f"{number}.{part}"] for part in parts)))
        self.config: Any = fused.config
        self.act_fn: Any = fused.act_fn
        self.kind = type(fused)

    @classmethod
    def apart(cls, fused: nn.Module) -> PackedExperts:
        """With dense layers of the weights, which packed ones are to replace."""
        layers: dict[str, nn.Module] = {}
        for key in (GATE_UP, DOWN):
            for name, weight in matrices(key, getattr(fused, key).detach()):
                layers[name] = linear_of(weight.clone())
        return cls(fused, layers)

    @property
    def experts(self) -> list[Expert]:
        return [getattr(self, str(number)) for number in range(self.num_experts)]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Of ``(tokens, hidden)``, with numbers and weights ``(tokens, experts of a token)``."""
        out = torch.zeros_like(hidden_states)
        order = top_k_index.flatten().argsort(stable=True)
        counts = top_k_index.flatten().bincount(minlength=self.num_experts).tolist()
        if len(counts) > self.num_experts:
            raise ValueError(f"the router chose expert {len(counts) - 1} of {self.num_experts}: experts are not split")
        tokens, weights = order // top_k_index.shape[-1], top_k_weights.flatten()[order].unsqueeze(1)
        for expert, own, weight in zip(self.experts, tokens.split(counts), weights.split(counts), strict=True):
            if len(own):
                x = hidden_states[own]
                y = expert.down_proj(self.act_fn(expert.gate_proj(x)) * expert.up_proj(x)) * weight
                out.index_add_(0, own, y.to(out.dtype))
        return out

    def fused(self, dtype: torch.dtype) -> nn.Module:
        """The experts of transformers again, with the weights that the packed layers stand for."""

        def dense(layer: nn.Module) -> Tensor:
            assert isinstance(layer, TernaryLinearInference)
            return layer.dequantized_weight(dtype)

        with torch.device("meta"):
            experts: nn.Module = self.kind(self.config)
        gate_up = [torch.cat([dense(expert.gate_proj), dense(expert.up_proj)]) for expert in self.experts]
        experts.gate_up_proj = nn.Parameter(torch.stack(gate_up))
        experts.down_proj = nn.Parameter(torch.stack([dense(expert.down_proj) for expert in self.experts]))
        return experts.train(self.training)
