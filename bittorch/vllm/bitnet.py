"""BitNet b1.58 for vLLM, which has no such model: LLaMA with norms before both output projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

from bittorch.models.block import gated


def _normed(norm: nn.Module, share: Tensor, after: RowParallelLinear) -> Tensor:
    """This process's columns of the norm of whole rows."""
    if after.tp_size == 1:
        whole: Tensor = norm(share)
        return whole
    columns = share.shape[-1]
    rows: Tensor = norm(tensor_model_parallel_all_gather(share.contiguous()))
    return rows[..., after.tp_rank * columns : (after.tp_rank + 1) * columns].contiguous()


class BitNetAttention(LlamaAttention):
    """``o_proj(norm(attention))``."""

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config=config, **options)
        self.attn_sub_norm = RMSNorm(self.total_num_heads * self.head_dim, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """``(tokens, hidden)`` of the same."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        output: Tensor = self.o_proj(_normed(self.attn_sub_norm, self.attn(q, k, v), self.o_proj))[0]
        return output


class BitNetMLP(nn.Module):
    """``down_proj(norm(act(gate) * up))``."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        if config.hidden_act not in ("relu2", "silu"):
            raise ValueError(f"BitNet's hidden_act is relu2 or silu, got {config.hidden_act!r}")
        hidden, inner = config.hidden_size, config.intermediate_size
        options: dict[str, Any] = {"bias": getattr(config, "mlp_bias", False), "quant_config": quant_config}
        self.act = config.hidden_act
        self.gate_up_proj = MergedColumnParallelLinear(hidden, [inner] * 2, prefix=f"{prefix}.gate_up_proj", **options)
        self.down_proj = RowParallelLinear(inner, hidden, prefix=f"{prefix}.down_proj", **options)
        self.ffn_sub_norm = RMSNorm(inner, eps=config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """``(tokens, hidden)`` of the same."""
        inner = gated(self.gate_up_proj(x)[0], self.act)
        output: Tensor = self.down_proj(_normed(self.ffn_sub_norm, inner, self.down_proj))[0]
        return output


class BitNetDecoderLayer(LlamaDecoderLayer):
    """LLaMA's layer with these parts."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        nn.Module.__init__(self)  # LLaMA's would make its own MLP, which knows silu alone
        config = config or vllm_config.model_config.hf_config
        quant_config, bias = self.get_quant_config(vllm_config), getattr(config, "attention_bias", False)
        self.hidden_size = config.hidden_size
        self.self_attn = BitNetAttention(
            config,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            quant_config=quant_config,
            bias=bias,
            bias_o_proj=bias,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.self_attn",
        )
        self.mlp = BitNetMLP(config, quant_config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class BitNetForCausalLM(LlamaForCausalLM):
    """The model of config.json's ``architectures``."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=BitNetDecoderLayer)
