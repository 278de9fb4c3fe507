"""Experts instead of one MLP: a router chooses some of many for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bittorch.models.block import MLP, gated
from bittorch.models.config import ModelConfig
from bittorch.models.norm import RMSNorm
from bittorch.models.rules import Block, Experts, Linear, Part, Router


class SparseMLP(Block):
    """The sum of ``weight * down(act(gate) * up)`` over a token's experts, which alone are computed.

    The router's logits become weights by a softmax over all experts, in float32; the largest are a token's, and may be
    divided by their sum. With a ``shared_expert_size`` every token also goes through an `MLP` of this size, whose
    output is multiplied by ``sigmoid(shared_expert_gate(x))``.

    Args:
        config: the model's.
        precise: the router's logits too are computed in float32, whatever the model's dtype is.

    Source:
        Switch Transformers, arXiv:2101.03961; the weights as Qwen3-MoE has them, arXiv:2505.09388; the shared expert
        as Qwen2-MoE has it, arXiv:2407.10671.
    """

    gate: nn.Linear
    gate_up_proj: nn.ModuleList
    down_proj: nn.ModuleList
    shared_expert_gate: nn.Linear

    def __init__(self, config: ModelConfig, *, precise: bool = False) -> None:
        super().__init__()
        self.used, self.normalise, self.limit = config.experts_per_token, config.normalise_experts, config.expert_limit
        self.act = config.hidden_act
        count, hidden, inner = config.num_experts, config.hidden_size, config.expert_size
        gate_up = (Part("gate_proj", inner), Part("up_proj", inner))
        self.hold("gate", Router("gate", count, hidden, precise))
        self.hold("gate_up_proj", Experts(count, Linear(hidden, gate_up)))
        self.hold("down_proj", Experts(count, Linear(inner, (Part("down_proj", hidden),))))
        self.shared_expert, self.unchanged = None, nn.Identity()
        if config.shared_expert_size:
            self.shared_expert = MLP(config, size=config.shared_expert_size)
            self.hold("shared_expert_gate", Router("shared_expert_gate", 1, hidden))

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Of ``norm(x)``, ``(tokens, hidden)``; the tokens of an expert are one product."""
        x = norm(x)
        weights, chosen = self.routed(x)
        order = chosen.flatten().argsort(stable=True)  # by expert, then by token
        tokens, weights = order // self.used, weights.flatten()[order].unsqueeze(1)
        counts = chosen.flatten().bincount(minlength=len(self.down_proj)).tolist()
        used = [expert for expert, count in enumerate(counts) if count]
        sizes = [counts[expert] for expert in used]
        out = torch.zeros_like(x)
        for expert, own, weight in zip(used, tokens.split(sizes), weights.split(sizes), strict=True):
            inner = gated(self._limited(self.gate_up_proj[expert](x[own])), self.act)
            out.index_add_(0, own, self.down_proj[expert](inner).mul_(weight))
        if self.shared_expert is not None:
            out += self.shared_expert_gate(x).sigmoid() * self.shared_expert(x, self.unchanged)
        return out

    def _limited(self, gate_up: Tensor) -> Tensor:
        if self.limit:
            gate, up = gate_up.chunk(2, -1)
            gate.clamp_(max=self.limit)
            up.clamp_(-self.limit, self.limit)
        return gate_up

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, ``(tokens, experts_per_token)`` both."""
        weights, chosen = self.gate(x.to(self.gate.weight.dtype)).softmax(-1, dtype=torch.float32).topk(self.used)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen
