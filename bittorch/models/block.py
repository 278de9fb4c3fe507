"""One layer of the decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bittorch.models.attention import Attention
from bittorch.models.batch import Batch
from bittorch.models.config import ModelConfig
from bittorch.models.linear import normed
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation


class MLP(nn.Module):
    """``down_proj(sub_norm(act(gate) * up))``, gate and up from one product; act is SiLU, or the square of ReLU.

    Args:
        config: the model's.
        gate_up_proj: gives the rows of gate, then up.
        down_proj: back to the hidden size.
    """

    def __init__(self, config: ModelConfig, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.relu2, self.fuse = config.hidden_act == "relu2", config.fuse_norms
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.ffn_sub_norm = RMSNorm(config.intermediate_size, config.rms_norm_eps) if config.sub_norm else nn.Identity()

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Of ``norm(x)``, ``(tokens, hidden)``."""
        gate, up = normed(self.gate_up_proj, norm, x, self.fuse).chunk(2, -1)
        if self.relu2:
            gate = gate.relu_()
            inner = gate.square().mul_(up)
        else:
            inner = F.silu(gate).mul_(up)
        return normed(self.down_proj, self.ffn_sub_norm, inner, self.fuse)


class DecoderLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        config: the model's.
        self_attn, mlp: the two halves.
    """

    def __init__(self, config: ModelConfig, self_attn: Attention, mlp: MLP) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        x = x + self.self_attn(x, self.input_layernorm, rotation, batch)
        return x + self.mlp(x, self.post_attention_layernorm)
