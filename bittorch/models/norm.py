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
        # Without memory: whoever builds the model gives it the weight of the checkpoint.
        self.weight = nn.Parameter(torch.empty(size, device="meta"), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.size, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.size[0]}, eps={self.eps}"
