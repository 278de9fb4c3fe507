"""One layer of the decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bittorch.models.batch import Batch
from bittorch.models.config import ModelConfig
from bittorch.models.linear import normed
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation
from bittorch.models.rules import Block, NormedLinear, Part


def gated(gate_up: Tensor, act: str) -> Tensor:
    """``act(gate) * up`` of two halves side by side, which it may overwrite; act is `ModelConfig.hidden_act`."""
    gate, up = gate_up.chunk(2, -1)
    if act == "relu2":
        return gate.relu_().square().mul_(up)
    return (F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)


class MLP(Block):
    """``down_proj(sub_norm(act(gate) * up))``, gate and up from one product.

    Args:
        config: the model's.
        sub_norm: whether there is a norm, ``ffn_sub_norm``, before the last projection.
        size: of what is between the projections; 0 for the model's.
    """

    gate_up_proj: nn.Module
    down_proj: nn.Module
    ffn_sub_norm: nn.Module

    def __init__(self, config: ModelConfig, *, sub_norm: bool = False, size: int = 0) -> None:
        super().__init__()
        self.act, self.fuse = config.hidden_act, config.fuse_norms
        hidden, inner = config.hidden_size, size or config.intermediate_size
        gate_up = tuple(Part(name, inner, config.has_bias(name)) for name in ("gate_proj", "up_proj"))
        down = Part("down_proj", hidden, config.has_bias("down_proj"))
        self.hold("gate_up_proj", NormedLinear.of(config, hidden, gate_up))
        self.hold("down_proj", NormedLinear.of(config, inner, (down,)))
        self.hold_norm(config, "ffn_sub_norm", inner, sub_norm)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Of ``norm(x)``, ``(tokens, hidden)``."""
        inner = gated(normed(self.gate_up_proj, norm, x, self.fuse), self.act)
        return normed(self.down_proj, self.ffn_sub_norm, inner, self.fuse)


class DecoderLayer(Block):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    A layer of another kind is a `Block` of its own with the same ``forward``.

    Args:
        config: the model's.
        self_attn: takes ``(x, norm, rotation, batch)``.
        mlp: takes ``(x, norm)``.
    """

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm

    def __init__(self, config: ModelConfig, self_attn: Block, mlp: Block) -> None:
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self.hold_norm(config, "input_layernorm", config.hidden_size)
        self.hold_norm(config, "post_attention_layernorm", config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        x = x + self.self_attn(x, self.input_layernorm, rotation, batch)
        return x + self.mlp(x, self.post_attention_layernorm)


class SandwichLayer(DecoderLayer):
    """``x + norm(attention(norm(x)))``, then ``x + norm(mlp(norm(x)))``."""

    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm

    def __init__(self, config: ModelConfig, self_attn: Block, mlp: Block) -> None:
        super().__init__(config, self_attn, mlp)
        self.hold_norm(config, "pre_feedforward_layernorm", config.hidden_size)
        self.hold_norm(config, "post_feedforward_layernorm", config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, self.input_layernorm, rotation, batch))
        return x + self.post_feedforward_layernorm(self.mlp(x, self.pre_feedforward_layernorm))
