"""Experts against all of them computed for every token, in float64."""

from __future__ import annotations

import torch
from torch import nn

from bittorch.models.config import ModelConfig
from bittorch.models.experts import SparseMLP
from bittorch.models.norm import RMSNorm
from tests import helpers

SIZES = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "max_positions": 8}
HEADS = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 8}


def test_a_token_goes_through_its_own_experts_alone() -> None:
    config = ModelConfig(**SIZES, **HEADS, num_experts=6, experts_per_token=2, expert_size=4)
    block, rows = SparseMLP(config), []
    torch.manual_seed(0)
    block.gate = nn.Linear(8, 6, bias=False)
    block.gate_up_proj = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(6))
    block.down_proj = nn.ModuleList(nn.Linear(4, 8, bias=False) for _ in range(6))
    block.double()
    for expert in block.gate_up_proj:
        expert.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    norm = RMSNorm(8, 1e-6).double()
    norm.fill(torch.ones(8, dtype=torch.float64))
    x = torch.randn(5, 8, generator=helpers.seeded(1), dtype=torch.float64)
    with torch.inference_mode():
        found = block(x, norm)
        assert sum(rows) == 5 * 2
        normed = norm(x)
        share = block.gate(normed).softmax(-1)
        share = share.where(share >= share.topk(2).values[:, 1:], 0)
        share = share / share.sum(-1, keepdim=True)
        expected = torch.zeros_like(x)
        for expert in range(6):
            gate, up = block.gate_up_proj[expert](normed).chunk(2, -1)
            expected += share[:, expert, None] * block.down_proj[expert](nn.functional.silu(gate) * up)
    assert float((found - expected).abs().max()) < 1e-6  # shares are rounded to float32


def test_every_token_goes_through_the_shared_expert() -> None:
    """Beside its own experts, which are zero here."""
    config = ModelConfig(**SIZES, **HEADS, num_experts=2, experts_per_token=1, expert_size=4, shared_expert_size=6)
    block = SparseMLP(config)
    torch.manual_seed(0)
    block.gate = nn.Linear(8, 2, bias=False)
    block.gate_up_proj = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))
    block.down_proj = nn.ModuleList(nn.Linear(4, 8, bias=False) for _ in range(2))
    for expert in block.down_proj:
        expert.weight.data.zero_()
    assert block.shared_expert is not None
    block.shared_expert.gate_up_proj = nn.Linear(8, 12, bias=False)
    block.shared_expert.down_proj = nn.Linear(6, 8, bias=False)
    block.shared_expert_gate = nn.Linear(8, 1, bias=False)
    norm = RMSNorm(8, 1e-6)
    norm.fill(torch.full((8,), 0.5))
    x = torch.randn(5, 8, generator=helpers.seeded(1))
    with torch.inference_mode():
        normed = norm(x).double()
        gate, up = (normed @ block.shared_expert.gate_up_proj.weight.T.double()).chunk(2, -1)
        inner = gate * gate.sigmoid() * up
        share = (normed @ block.shared_expert_gate.weight.T.double()).sigmoid()
        expected = share * (inner @ block.shared_expert.down_proj.weight.T.double())
        assert float((block(x, norm) - expected).abs().max()) < 1e-6
