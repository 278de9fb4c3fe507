"""compressed-tensors checkpoints with 2 bits on a CPU, for which vLLM has no kernel of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from bittorch import ops
from bittorch.models.io import codecs

_WORD = 16  # codes of an int32


class TernaryLinearKernel(MPLinearKernel):
    """``y = x @ (codes * scale)^T + bias`` of words of 16 codes ``weight + 2``.

    vLLM rounds scales to the model's dtype when it loads them; what it kept is multiplied in float32.

    It is the last of its kind, so it runs where no other kernel does.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        """Of CUDA, which this is not for."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether a layer can run here, else why not."""
        columns, whole = c.partition_weight_shape[0], c.full_weight_shape[0]
        if c.weight_type != scalar_types.uint2b2 or c.zero_points:
            return False, f"ternary weights are symmetric with 2 bits (uint2b2), got {c.weight_type}"
        if columns != whole and columns % _WORD:
            return False, f"{columns} of {whole} columns per process are no whole words of {_WORD} codes"
        if c.group_size not in (-1, whole) and (c.group_size % 4 or columns % c.group_size):
            return False, f"groups of {c.group_size} must be a multiple of 4 and divide {columns} columns per process"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Repacks the words, one layer at a time; ValueError for the code that is -2."""
        words, scale, _ = self._get_weight_params(layer)
        columns, name = self.config.partition_weight_shape[0], str(getattr(layer, "prefix", "a layer"))
        packed = torch.from_numpy(codecs.decode_int32(words.data.contiguous().view(torch.uint8).numpy(), columns))
        try:
            ops.check_packed(packed, columns, f"{name}.{self.w_q_name}")
        except ValueError as error:
            raise ValueError(f"weights of 2 bits must be -1, 0 or 1 here; one is -2: {error}") from None
        wide = scale.data.float()
        wide = wide[:, 0].contiguous() if wide.shape[1] == 1 else wide
        if not bool(torch.isfinite(wide).all()):
            raise ValueError(f"{name}.{self.w_s_name} holds NaN or Inf; the file is damaged")
        setattr(layer, self.w_q_name, nn.Parameter(packed, requires_grad=False))
        setattr(layer, self.w_s_name, nn.Parameter(wide, requires_grad=False))

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product with floating activations."""
        weights: tuple[Any, ...] = self._get_weight_params(layer)
        y: Tensor = torch.ops.bittorch.ternary_linear_packed.default(x, weights[0], weights[1], bias)
        return y


register_linear_kernel(TernaryLinearKernel, PlatformEnum.CPU, "mp")
