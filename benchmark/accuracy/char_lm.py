"""Character language models, nanoGPT's CPU and GPU configurations. Data: tinyshakespeare.txt (see data.py).

All linear layers of the blocks are ternary; the embeddings, the norms and the head, tied to the embedding, stay FP32.
"""

import functools

from recipe import Recipe
from task import Task
from torch import Tensor, nn
from torch.nn import functional as F

CHARACTERS = 65
# With 0.05 and 1.0 these rates let some seeds break down early, more of the ternary nets than of FP32: E7.
CALM = {"warmup": 0.2, "clip": 0.25}


class Block(nn.Module):
    """Attention and an MLP, each after a norm and beside a residual."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        share = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=share)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class CharLM(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(CHARACTERS, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.token(ids) + self.position.weight[: ids.shape[1]])
        return F.linear(self.norm(self.blocks(x)), self.token.weight)


def build(recipe: Recipe, **sizes: float) -> nn.Module:
    return CharLM(**sizes)


CPU = Task(
    name="char_lm",
    title="char LM 4L 128d, context 64, 2000 steps (embedding, tied head and norms FP32)",
    build=functools.partial(build, layers=4, width=128, heads=4, context=64, dropout=0.0),
    recipe=Recipe(
        steps=2000, batch=12, lr=5e-3, lr_fp32=4e-3, lr_end=0.1, beta2=0.99, weight_decay=0.1, decay_off=0.5, **CALM
    ),
    text="tinyshakespeare.txt",
    context=64,
)
GPU = Task(
    name="char_lm_gpu",
    title="char LM 6L 384d, context 256, 5000 steps (embedding, tied head and norms FP32)",
    build=functools.partial(build, layers=6, width=384, heads=6, context=256, dropout=0.2),
    recipe=Recipe(
        steps=5000, batch=64, lr=2e-3, lr_fp32=1e-3, lr_end=0.1, beta2=0.99, weight_decay=0.1, decay_off=0.5, **CALM
    ),
    text="tinyshakespeare.txt",
    context=256,
)
