"""The deployed layer: packed 2-bit weights, nothing to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bittorch import _env, ops
from bittorch.quant.ternary import check_activation_bits


class TernaryLinearInference(nn.Module):
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

    weight_packed: Tensor
    scale: Tensor
    bias: Tensor | None

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
        super().__init__()
        check_activation_bits(activation_bits, in_features)
        if groups < 0 or (groups > 1 and (in_features % groups or in_features // groups % 4)):
            raise ValueError(f"groups={groups} do not cut in_features={in_features} into equal multiples of 4")
        self.in_features = in_features
        self.out_features = out_features
        self.activation_bits = activation_bits
        scale_shape = (1,) if groups == 0 else (out_features,) if groups == 1 else (out_features, groups)
        packed_shape = (out_features, (in_features + 3) // 4)
        self.register_buffer("weight_packed", torch.zeros(packed_shape, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.zeros(scale_shape, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)

    @property
    def groups(self) -> int:
        """Scales of a row; 0 when the layer has a single one."""
        if self.scale.dim() == 2:
            return self.scale.shape[1]
        return 0 if self.scale.shape[0] == 1 and self.out_features != 1 else 1

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TernaryLinearInference:
        """Moves all buffers, but no cast changes codes and scale: a rounded scale would change every output."""
        before = {"weight_packed": self.weight_packed, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, torch.empty_like(tensor, device=moved.device))
                if tensor.device.type != "meta":
                    getattr(self, name).copy_(tensor)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _check_state(self, state: dict[str, Any], prefix: str) -> None:
        """Refuses weights that no kernel defines; shapes and missing keys are torch's own errors."""
        packed, scale = state.get(prefix + "weight_packed"), state.get(prefix + "scale")
        if packed is not None and packed.shape == self.weight_packed.shape and packed.device.type != "meta":
            if packed.dtype != torch.uint8:
                raise RuntimeError(f"{prefix}weight_packed must be uint8, got {packed.dtype}")
            try:
                ops.check_packed(packed, self.in_features, prefix + "weight_packed")
            except ValueError as error:
                raise RuntimeError(str(error)) from None
        if scale is not None and scale.device.type != "meta":
            if scale.dtype != torch.float32:
                raise RuntimeError(f"{prefix}scale must be float32, got {scale.dtype}")
            if not bool(torch.isfinite(scale).all()):
                raise RuntimeError(f"{prefix}scale must be finite, got NaN or Inf; the checkpoint is damaged")
