"""DeltaNet with gates: a layer that remembers a matrix for each head, of one size however many tokens there were."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bittorch.models.batch import Batch
from bittorch.models.config import ModelConfig
from bittorch.models.linear import normed
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation
from bittorch.models.rules import Block, Linear, Named, Norm, Part, Rule, Source

L2_EPS = 1e-6
CHUNK = 64  # tokens that are read at once; a triangular system of this size is solved for each head


def delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """For each token ``S = a S``, ``S += k (b (v - S^T k))^T``, ``y = S^T q``, with ``a = exp(decay)``.

    Args:
        q, k: ``(rows, tokens, heads, key_dim)`` float32, as they are multiplied.
        v: ``(rows, tokens, heads, value_dim)`` float32.
        decay: ``(rows, tokens, heads)`` float32, at most 0: the logarithm of what is kept of S.
        beta: ``(rows, tokens, heads)`` float32: how much of a value is written.
        state: S before, ``(rows, heads, key_dim, value_dim)`` float32; becomes S behind the last token.

    Returns:
        ``(rows, tokens, heads, value_dim)``.

    Source:
        Gated Delta Networks, arXiv:2412.06464.
    """
    parts = zip(*(t.split(CHUNK, 1) for t in (q, k, v, decay, beta)), strict=True)
    return torch.cat([_chunk([t.transpose(1, 2) for t in part], state) for part in parts], 2).transpose(1, 2)


def _chunk(inputs: list[Tensor], state: Tensor) -> Tensor:
    """`delta_rule` of some tokens at once; inputs q, k, v, decay and beta, ``(rows, heads, tokens, ...)``.

    With ``g`` the sums of decay up to each token and ``e[t, i] = exp(g_t - g_i)``, S behind token t is
    ``exp(g_t) S + sum_i<=t e[t, i] k_i u_i^T``, where u, what is written, solves the triangular system
    ``u_t + b_t sum_i<t e[t, i] (k_t k_i) u_i = b_t (v_t - exp(g_t) S^T k_t)``.
    """
    q, k, v, decay, beta = inputs
    total = decay.double().cumsum(2)  # differences of two large sums are exponents
    since, beta = total.exp().float().unsqueeze(3), beta.unsqueeze(3)
    written = beta * (v - since * (k @ state))
    read = since * (q @ state)
    if q.shape[2] == 1:
        kept = torch.ones_like(since)
    else:
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        kept = (total.unsqueeze(3) - total.unsqueeze(2)).float().masked_fill_(later, -torch.inf).exp_()
        system = (beta * kept * (k @ k.transpose(2, 3))).tril(-1)
        written = torch.linalg.solve_triangular(system, written, upper=False, unitriangular=True)
    read += (kept * (q @ k.transpose(2, 3))) @ written
    keys = (k * kept[:, :, -1:].transpose(2, 3)).transpose(2, 3)
    state.mul_(since[:, :, -1:]).view(-1, *state.shape[2:]).baddbmm_(keys.flatten(0, 1), written.flatten(0, 1))
    return read


def normalised(x: Tensor) -> Tensor:
    """``x / |x|`` over the last dimension."""
    return x * (x.square().sum(-1, keepdim=True) + L2_EPS).rsqrt()


class Held(nn.Module):
    """A module that is a tensor, ``value``."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)


@dataclasses.dataclass(frozen=True)
class Values(Rule):
    """A tensor of any shape by its whole name, as `Held`; ``precise`` is in float32, whatever the model is."""

    name: str
    shape: tuple[int, ...]
    precise: bool = False

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return {prefix + self.name: self.shape}

    def load(self, source: Source, prefix: str, owner: nn.Module) -> Held:
        return Held(source.values(prefix + self.name, self.precise))

    def tensors(self, module: nn.Module, prefix: str) -> Named:
        assert isinstance(module, Held)
        yield prefix + self.name, module.value


class DeltaNet(Block):
    """``out_proj(norm(y) * silu(z))`` with y of `delta_rule`, whose q, k and v went through a short causal convolution.

    Queries and keys have length 1, queries then ``1 / sqrt(key_dim)``; the convolution has one filter a channel, and
    SiLU behind it. ``decay = -exp(A_log) softplus(a + dt_bias)`` and ``beta = sigmoid(b)``, both a number a value head.
    A key head serves the value heads that stand side by side.

    Args:
        config: the model's.
        layer: its number in the model.

    Source:
        Qwen3-Next and Qwen3.5 as transformers has them; arXiv:2412.06464.
    """

    in_proj_qkvz: nn.Module
    in_proj_ba: nn.Module
    conv1d: Held
    A_log: Held
    dt_bias: Held
    norm: RMSNorm
    out_proj: nn.Module

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.fuse, self.kernel = config.cache_layer(layer), config.fuse_norms, config.delta_kernel
        self.key_heads, self.heads = config.delta_key_heads, config.delta_value_heads
        self.key_dim, self.value_dim = config.delta_key_dim, config.delta_value_dim
        hidden, values, self.channels = config.hidden_size, self.heads * self.value_dim, config.delta_channels
        self.hold("in_proj_qkvz", Linear(hidden, (Part("in_proj_qkv", self.channels), Part("in_proj_z", values))))
        self.hold("in_proj_ba", Linear(hidden, (Part("in_proj_b", self.heads), Part("in_proj_a", self.heads))))
        self.hold("conv1d", Values("conv1d.weight", (self.channels, 1, self.kernel), precise=True))
        self.hold("A_log", Values("A_log", (self.heads,), precise=True))
        self.hold("dt_bias", Values("dt_bias", (self.heads,), precise=True))
        self.hold("norm", Norm("norm", self.value_dim, config.rms_norm_eps))
        self.hold("out_proj", Linear(values, (Part("out_proj", hidden),)))

    def forward(self, x: Tensor, norm: RMSNorm, rotation: Rotation, batch: Batch) -> Tensor:
        """``norm(x)``, ``(tokens, hidden)``, to the same; positions play no part."""
        qkvz = normed(self.in_proj_qkvz, norm, x, self.fuse)
        b, a = normed(self.in_proj_ba, norm, x, self.fuse).float().chunk(2, 1)
        decay = -self.A_log.value.exp() * F.softplus(a + self.dt_bias.value)
        parts = (qkvz[:, : self.channels], decay, b.sigmoid())
        if len(set(batch.counts)) == 1:
            y = self._read([part.unflatten(0, (len(batch.counts), -1)) for part in parts], batch.rows, batch)
        else:
            split = zip(*(part.split(batch.counts) for part in parts), strict=True)
            rows = [[part.unsqueeze(0) for part in own] for own in split]
            y = torch.cat([self._read(own, (row,), batch) for own, row in zip(rows, batch.rows, strict=True)])
        z = qkvz[:, self.channels :].unflatten(1, (self.heads, self.value_dim))
        return self.out_proj((self.norm(y) * F.silu(z.float())).to(x.dtype).flatten(1))

    def _read(self, parts: list[Tensor], rows: tuple[int, ...], batch: Batch) -> Tensor:
        """The tokens of rows, as many of each: ``(rows, tokens, ...)`` to ``(rows * tokens, heads, value_dim)``."""
        mixed, decay, beta = parts
        states = None if batch.cache is None else batch.cache.states
        if states is None:
            window = mixed.new_zeros(len(rows), self.kernel - 1, self.channels)
            matrix = decay.new_zeros(len(rows), self.heads, self.key_dim, self.value_dim)
        else:
            window, matrix = states.of(self.layer, rows)
        mixed = torch.cat((window, mixed), 1)
        q, k, v = self._heads(F.silu(self._convolved(mixed.float())))
        y = delta_rule(q, k, v, decay, beta, matrix)
        if states is not None:
            states.put(self.layer, rows, mixed[:, 1 - self.kernel :], matrix)
        return y.flatten(0, 1)

    def _convolved(self, x: Tensor) -> Tensor:
        """Of ``(rows, kernel - 1 + tokens, channels)``; taps are added in one order, however many tokens there are."""
        taps, count = self.conv1d.value[:, 0].unbind(1), x.shape[1] - self.kernel + 1
        y = x[:, :count] * taps[0]
        for tap in range(1, self.kernel):
            y.addcmul_(x[:, tap : tap + count], taps[tap])
        return y

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each value head."""
        keys = self.key_heads * self.key_dim
        q, k, v = x.split((keys, keys, self.heads * self.value_dim), 2)
        group = self.heads // self.key_heads
        q, k = (normalised(t.unflatten(2, (self.key_heads, -1))).repeat_interleave(group, 2) for t in (q, k))
        return q * self.key_dim**-0.5, k, v.unflatten(2, (self.heads, -1))


class DeltaLayer(Block):
    """``x + delta_net(norm(x))``, then ``x + mlp(norm(x))``; as `bittorch.models.block.DecoderLayer`."""

    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm

    def __init__(self, config: ModelConfig, linear_attn: DeltaNet, mlp: Block) -> None:
        super().__init__()
        self.linear_attn, self.mlp = linear_attn, mlp
        self.hold_norm(config, "input_layernorm", config.hidden_size)
        self.hold_norm(config, "post_attention_layernorm", config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        x = x + self.linear_attn(x, self.input_layernorm, rotation, batch)
        return x + self.mlp(x, self.post_attention_layernorm)


def tiled(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The order of value heads in GGUF files: the first of every key head, then the second of every key head.

    Returns:
        Of heads, of their channels, and of the channels of queries, keys and values together; i of the file is
        ``order[i]`` here.
    """
    heads = torch.arange(config.delta_value_heads).view(config.delta_key_heads, -1).T.flatten()
    values = (heads.unsqueeze(1) * config.delta_value_dim + torch.arange(config.delta_value_dim)).flatten()
    keys = torch.arange(2 * config.delta_key_heads * config.delta_key_dim)
    return heads, values, torch.cat((keys, len(keys) + values))
