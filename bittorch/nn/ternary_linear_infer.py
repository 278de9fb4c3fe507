"""The deployed layer: packed 2-bit weights, nothing to train."""

from __future__ import annotations

import torch
from torch import Tensor

from bittorch import _env
from bittorch.nn.packed_layer import PackedLayer


class TernaryLinearInference(PackedLayer):
    """``y = x @ (codes * scale)^T + bias`` from packed codes.

    Buffers only: ``weight_packed`` ``(out_features, ceil(in_features / 4))`` uint8, ``scale`` float32, ``bias`` or
    None. ``.half()`` and ``.to(dtype)`` cast the bias and leave codes and scale as they are. ``x`` may be float32,
    float16 or bfloat16; the result has its dtype.

    Made by `bittorch.export_for_inference`, or empty, to be filled by ``load_state_dict``:

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`; dtype is that of the bias.
        groups: scales of a row: 0 for one scale a layer, 1 for one a row, more for groups of
            ``in_features / groups`` columns.
        activation_bits: None for floating activations, else 8, 16 or 24, as in `bittorch.TernaryQuantConfig`.

    Raises:
        ValueError: groups that do not cut in_features into equal multiples of 4, an unknown activation_bits;
        from ``load_state_dict`` RuntimeError, for the reserved code 11, wrong padding, or a scale that is not finite.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        groups: int = 1,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups < 0 or (groups > 1 and (in_features % groups or in_features // groups % 4)):
            raise ValueError(f"groups={groups} do not cut in_features={in_features} into equal multiples of 4")
        super().__init__(out_features, in_features, bias, groups, activation_bits, device, dtype)
        self.in_features = in_features
        self.out_features = out_features

    @property
    def columns(self) -> int:
        return self.in_features

    @property
    def groups(self) -> int:
        """Scales of a row; 0 when the layer has a single one."""
        return self._scale_groups()

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 0 or input.shape[-1] != self.in_features:  # packed rows know it only to a whole byte
            raise ValueError(f"input must be (..., {self.in_features}), got {tuple(input.shape)}")
        buffers = self._buffers  # an attribute of a module takes as long to find as a small layer to run
        weights = buffers["weight_packed"], buffers["scale"], buffers["bias"]
        if self.activation_bits is None:
            return torch.ops.bittorch.ternary_linear_packed.default(input, *weights, _env.INFER_VARIANT)
        return torch.ops.bittorch.ternary_linear_w2a8.default(
            input, *weights, None, None, self.activation_bits, _env.INFER_VARIANT
        )  # by position: keywords cost half a microsecond

    def extra_repr(self) -> str:
        parts = [f"in_features={self.in_features}", f"out_features={self.out_features}"]
        parts += [f"bias={self.bias is not None}", f"groups={self.groups}"]
        if self.activation_bits:
            parts.append(f"activation_bits={self.activation_bits}")
        return ", ".join(parts)
