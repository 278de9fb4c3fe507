"""Causal attention with grouped queries, on keys and values without padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bittorch import ops
from bittorch.models.batch import Batch
from bittorch.models.config import ModelConfig
from bittorch.models.linear import normed
from bittorch.models.norm import RMSNorm
from bittorch.models.rope import Rotation
from bittorch.models.rules import Block, NormedLinear, Part

Ints = tuple[int, ...]
# What `bittorch.ops.decode_attention` takes: new tokens of a sequence, and head_dim, this of `rotary_store` too.
DECODED_TOKENS, DECODED_WIDTH = 8, 512


def attend(q: Tensor, kv: Tensor, window: int = 0, scale: float | None = None) -> Tensor:
    """``softmax(scale q k^T) v``; query i of t sees the keys up to ``length - t + i``.

    Args:
        q: ``(rows, t, heads, head_dim)``, the queries of the last t tokens.
        kv: ``(2, rows, kv_heads, length, head_dim)``, of any dtype.
        window: of these keys, a query sees the last ``window + 1``; 0 for all.
        scale: None for ``1 / sqrt(head_dim)``.

    Returns:
        ``(rows, t, heads * head_dim)``.
    """
    rows, count, heads, width = q.shape
    if window and kv.shape[3] > window + count:  # what no query sees
        kv = kv[:, :, :, -(window + count) :]
    k, v = kv.to(q.dtype).unbind()
    kv_heads, length = k.shape[1], k.shape[2]
    group = heads // kv_heads
    if count == 1:  # every query sees every key: those of a group are as good as tokens, and keys are read once for all
        y = F.scaled_dot_product_attention(q.reshape(rows, kv_heads, group, width), k, v, scale=scale)
        return y.reshape(rows, 1, heads * width)
    # A kv head and its group of queries are a batch of attentions, in which k and v are views of stride 0.
    q = q.reshape(rows, count, kv_heads, group, width).permute(0, 2, 3, 1, 4).flatten(0, 1)
    k, v = (t.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for t in (k, v))
    whole = length == count and not 0 < window < length - 1
    mask = None if whole else causal_mask(count, length, q.device, window)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return y.view(rows, kv_heads, group, count, width).permute(0, 3, 1, 2, 4).reshape(rows, count, heads * width)


def decodes(q: Tensor, count: int, past: int) -> bool:
    """Whether `bittorch.ops.decode_attention` attends to a sequence of ``past`` tokens in the cache and ``count`` more.

    A sequence that begins goes through torch, so that whole passes have the bits of the trained model in transformers.
    No other sequence has a part in the choice, so that a sequence computes what it computes alone.
    """
    return past > 0 and count <= DECODED_TOKENS and on_cpu(q)


def on_cpu(heads: Tensor) -> bool:
    """Whether ``(tokens, heads, head_dim)`` may go through the ops of a cache, which CPUs have, without gradients."""
    differentiable = heads.requires_grad and torch.is_grad_enabled()
    return heads.is_cpu and heads.shape[2] <= DECODED_WIDTH and not differentiable


def causal_mask(count: int, length: int, device: torch.device, window: int = 0) -> Tensor:
    """``(count, length)`` of bool: which keys the last ``count`` tokens see."""
    mask = torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)
    return mask.triu(length - count - window) if window else mask


class Attention(Block):
    """``o_proj(sub_norm(attend(rope(q), rope(k), v)))``, q, k and v from one product.

    Args:
        config: the model's.
        layer: which of the cache's layers is this one's.
        sub_norm: whether there is a norm, ``attn_sub_norm``, before the output projection.
        gated: whether what is attended to is multiplied by the sigmoid of a gate before the output projection. Each
            head of ``q_proj`` then has the rows of its queries, and as many of its gate.
    """

    qkv_proj: nn.Module
    o_proj: nn.Module
    attn_sub_norm: nn.Module

    def __init__(self, config: ModelConfig, layer: int, *, sub_norm: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.layer, self.fuse, self.window = config.cache_layer(layer), config.fuse_norms, config.window_of(layer)
        self.rotated, self.scale = config.rotated, config.query_size**-0.5 if config.query_size else None
        self.gated = gated
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q_proj": 2 * q if gated else q, "k_proj": kv, "v_proj": kv}
        parts = tuple(Part(name, count, config.has_bias(name)) for name, count in rows.items())
        output = Part("o_proj", config.hidden_size, config.has_bias("o_proj"))
        self.hold("qkv_proj", NormedLinear.of(config, config.hidden_size, parts))
        self.hold("o_proj", NormedLinear.of(config, q, (output,)))
        self.hold_norm(config, "attn_sub_norm", q, sub_norm)

    def forward(self, x: Tensor, norm: RMSNorm, rotation: Rotation, batch: Batch) -> Tensor:
        """``norm(x)``, ``(tokens, hidden)``, to the same; the tokens are those of the batch, one sequence behind the
        other."""
        heads = normed(self.qkv_proj, norm, x, self.fuse).view(len(x), -1, self.head_dim)
        if self.gated:
            q, kv = heads.split((2 * self.heads, 2 * self.kv_heads), 1)
            heads, gate = torch.cat((q[:, ::2], kv), 1), q[:, 1::2].flatten(1).sigmoid()
        heads = self.prepared(heads)
        turns = rotation.of(self.window) if self.rotated else None
        if batch.cache is not None and on_cpu(heads):
            heads = heads.contiguous()
            batch.store(self.layer, heads, turns)
        else:
            if turns is not None:
                turns.rotate_(heads[:, : self.heads + self.kv_heads, : self.rotated].unflatten(2, (2, -1)))
            if batch.cache is not None:
                batch.write(self.layer, heads[:, self.heads :].unflatten(1, (2, self.kv_heads)))
        y = self._attend(heads[:, : self.heads], heads[:, self.heads :], batch)
        return normed(self.o_proj, self.attn_sub_norm, y * gate if self.gated else y, self.fuse)

    def prepared(self, heads: Tensor) -> Tensor:
        """What is rotated, of ``(tokens, heads, head_dim)``, those of q, then k, then v; a subclass may norm them."""
        return heads

    def _attend(self, q: Tensor, kv: Tensor, batch: Batch) -> Tensor:
        """Of ``(tokens, heads, head_dim)`` and ``(tokens, 2 * kv_heads, head_dim)``, which the cache has already."""
        if decodes(q, batch.most, batch.least):
            return self._decode(q, batch.layers[self.layer], batch.lengths, batch.rows, batch.counts)
        kv = kv.unflatten(1, (2, self.kv_heads))
        if batch.even:
            rows, count = len(batch.counts), batch.counts[0]
            new = kv.unflatten(0, (rows, count)).permute(2, 0, 3, 1, 4)
            held = new if batch.cache is None else batch.views[1][self.layer]
            return attend(q.unflatten(0, (rows, count)), held, self.window, self.scale).flatten(0, 1)
        parts = zip(q.split(batch.counts), kv.split(batch.counts), strict=True)
        return torch.cat([self._attend_row(index, *part, batch) for index, part in enumerate(parts)])

    def _attend_row(self, index: int, q: Tensor, kv: Tensor, batch: Batch) -> Tensor:
        length = batch.lengths[index]
        held = kv.permute(1, 2, 0, 3).unsqueeze(1)
        if batch.cache is not None:
            held = batch.cache.data[self.layer, :, batch.rows[index], :, :length].unsqueeze(1)
        if decodes(q, len(q), batch.past[index]):
            return self._decode(q, held, (length,), None, (len(q),))
        return attend(q.unsqueeze(0), held, self.window, self.scale).squeeze(0)

    def _decode(self, q: Tensor, kv: Tensor, lengths: Ints, rows: Ints | None, counts: Ints) -> Tensor:
        return ops.decode_attention(q, kv, lengths, rows, counts, self.window, self.scale).flatten(1)
