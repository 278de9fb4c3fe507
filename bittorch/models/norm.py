"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in float32, cast once.

    Args:
        size: of the last dimension.
        eps: added to the mean square.

    Source:
        arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float) -> None:
        # Without memory: whoever builds the model gives it the weight of the checkpoint, by `fill`.
        super().__init__(size, eps, device="meta")
        self.weight.requires_grad_(False)
        self.epsilon: Tensor
        self.register_buffer("epsilon", torch.full((1,), eps, device="cpu"), persistent=False)

    def fill(self, weight: Tensor) -> None:
        """Takes a weight, and its device and dtype."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = self.epsilon.to(weight.device)

    @property
    def stored(self) -> Tensor:
        """The weight as checkpoints have it."""
        return self.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return super().forward(x)
        # Six calls where torch's composite operator makes twenty: decoding one token is made of such calls. They are
        # those of transformers, in its order, so that float32 logits are equal bit for bit.
        factor = x.square().mean(-1, True).add_(self.epsilon).rsqrt_()
        return torch.mul(x, factor).mul_(self.weight)


class NormFromOne(RMSNorm):
    """`RMSNorm` whose weight is stored less 1; in float32 whatever the dtype of ``x``, as 1 + w has fewer digits of w.

    Source:
        Gemma, arXiv:2403.08295; Qwen3-Next.
    """

    def fill(self, weight: Tensor) -> None:
        self.less_one = weight
        super().fill(1 + weight.float())

    @property
    def stored(self) -> Tensor:
        return self.less_one

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)
