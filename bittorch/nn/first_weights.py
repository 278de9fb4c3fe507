"""First weights whose quantised form has the norm that was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch.nn.learned_scale import LearnedScale, fill, gathered
from bittorch.nn.parts import codes_of, two_scales, unpacked
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig


class FirstWeights(LearnedScale):
    """A layer that draws its weights as torch does, and stretches them as `bittorch.nn.init.norm_preserving_` says."""

    quantize: bool
    _first_norms: tuple[Tensor, Tensor] | None = None  # of the weights that share a scale: as drawn, and stretched

    def reset_parameters(self) -> None:
        """Draws the weights as torch does, then makes the gain that of the dense layer: ``||Q(W)||`` becomes ``||W||``.

        With ``quantize=False`` the weights are torch's.
        """
        super().reset_parameters()
        self._first_norms = None
        if "weight_scale" in self._parameters:  # not yet there when torch's __init__ calls this
            self._preserve_norm()

    @torch.no_grad()
    def _preserve_norm(self) -> None:
        """Multiplies the weights that share a scale by ``||W|| / ||Q(W)||``, unless that was done to these weights."""
        if self.weight.is_meta or not self.weight.numel() or not self.quantize or self.config.scale == "rms":
            return  # rms keeps the norm of any weights
        weight = gathered(self.weight)
        filters = self._filters(weight)
        rows = self._rows_by_scale(filters)
        norms = _norms(rows)
        if self._first_norms and torch.allclose(norms, self._first_norms[1].to(norms), rtol=1e-3, atol=0):
            return  # not equal, because a cast rounds
        ratio = norms / _norms(self._rows_by_scale(self._quantized(weight)))
        stretches = ratio.isfinite() & (ratio > 0) & ((ratio - 1).abs() > 1e-6)  # else nothing is left, or it rounds
        ratio = torch.where(stretches, ratio, 1.0)
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        stretched = (rows.to(precise) * ratio.to(precise)[:, None]).to(weight.dtype).view(filters.shape)
        fill(self.weight, self._from_filters(stretched))
        self._first_norms = norms, norms * ratio
        self.reset_scale()

    def _rows_by_scale(self, filters: Tensor) -> Tensor:
        columns = filters.shape[1:].numel()
        shape = reference.scale_shape(len(filters), columns, *self.config.grouping)
        return filters.reshape(torch.Size(shape).numel(), -1)

    def _quantized(self, weight: Tensor) -> Tensor:
        """Codes times scale in float32, a filter a row; a learned scale starts from the weights."""
        step = self._rule(weight) if self.config.learned else None
        return _product(self._filters(weight), step, self.config)


def _product(filters: Tensor, step: Tensor | None, config: TernaryQuantConfig) -> Tensor:
    filters = filters.float()
    if step is not None and not config.packs:
        return two_scales(filters, step, config, 1.0)
    w_packed, scale, _ = codes_of(filters, step, config)
    return unpacked(w_packed, scale, filters)


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


@torch.no_grad()
def gain_of(layer: FirstWeights) -> float:
    """``||Q(W)|| / ||W||``, times the factor by which the first weights were stretched.

    It is the norm of what the layer multiplies by, compared with that of a dense layer with the same start. It is 1 for
    weights of the constructor. Below 1 the layer shrinks signals and gradients, above 1 it amplifies them.
    """
    weight = gathered(layer.weight).detach()
    step = None if layer.weight_scale is None else layer._stored_step()
    used = _product(layer._filters(weight), step, layer.config)
    norm, of_used = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in (weight, used))
    drawn, first = (float(t.norm()) for t in layer._first_norms) if layer._first_norms else (1.0, 1.0)
    return of_used / norm * first / drawn if norm and drawn else 1.0
