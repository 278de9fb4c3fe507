"""First weights whose quantised form has the norm that was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch.nn.learned_scale import LearnedScale, fill, gathered
from bittorch.nn.parts import codes_of, narrowed, two_scales, unpacked
from bittorch.ops import reference


class FirstWeights(LearnedScale):
    """A layer that draws its weights as torch does, and stretches them as `bittorch.nn.init.norm_preserving_` says."""

    quantize: bool
    _first_norms: Tensor | None = None  # of the weights that share a scale, as `_preserve_norm` left them

    def reset_parameters(self) -> None:
        """Draws the weights as torch does, then makes the gain that of the dense layer: ``||Q(W)||`` becomes ``||W||``.

        With ``quantize=False`` the weights are torch's.
        """
        super().reset_parameters()
        if "weight_scale" in self._parameters:  # not yet there when torch's __init__ calls this
            self._preserve_norm()

    @torch.no_grad()
    def _preserve_norm(self) -> None:
        """Multiplies the weights that share a scale by ``||W|| / ||Q(W)||``, unless that was done to these weights."""
        if self.weight.is_meta or not self.weight.numel() or not self.quantize:
            return
        weight = gathered(self.weight)
        rows = self._rows_by_scale(weight)
        norms = _norms(rows)
        if self._first_norms is not None and torch.allclose(norms, self._first_norms.to(norms), rtol=1e-3, atol=0):
            return  # not equal, because a cast rounds
        ratio = norms / _norms(self._rows_by_scale(self._quantized(weight)))
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)  # nothing to stretch, or nothing left of it
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        fill(self.weight, (rows.to(precise) * ratio.to(precise)[:, None]).to(weight.dtype).view(weight.shape))
        self._first_norms = norms * ratio
        self.reset_scale()

    def _rows_by_scale(self, weight: Tensor) -> Tensor:
        columns = weight.shape[1:].numel()
        shape = reference.scale_shape(len(weight), columns, *self.config.grouping)
        return weight.reshape(torch.Size(shape).numel(), -1)

    def _quantized(self, weight: Tensor) -> Tensor:
        """Codes times scale in float32; a learned scale starts from the weights."""
        weight = narrowed(weight).float()
        step = self._rule(weight) if self.config.learned else None
        if step is not None and not self.config.packs:
            return two_scales(weight, step, self.config, 1.0)
        w_packed, scale, _ = codes_of(weight, step, self.config)
        return unpacked(w_packed, scale, weight)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
