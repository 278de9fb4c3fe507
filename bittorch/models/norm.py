"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in float32, cast once.

    Args:
        size: of the last dimension.
        eps: added to the mean square.

    Source:
        arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps
        # Without memory: whoever builds the model gives it the weight of the checkpoint, by `fill`.
        self.weight = nn.Parameter(torch.empty(size, device="meta"), requires_grad=False)
        self.epsilon: Tensor
        self.register_buffer("epsilon", torch.empty(1, device="meta"), persistent=False)

    def fill(self, weight: Tensor) -> None:
        """Takes a weight, and its device and dtype."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = torch.full((1,), self.eps, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return F.rms_norm(x, self.size, self.weight, self.eps)
        # Five calls where torch's composite operator makes twenty: decoding one token is made of such calls.
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        factor = torch.addcmul(self.epsilon, norm, norm, value=1 / self.size[0]).rsqrt_()
        return torch.mul(x, factor).mul_(self.weight)

    def extra_repr(self) -> str:
        return f"{self.size[0]}, eps={self.eps}"
