"""The training layer: a linear layer whose weight is ternary in the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from bittorch import _C, ops
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer

Backend = Literal["auto", "cuda", "python"]


def _resolve_config(
    config: TernaryQuantConfig | None,
    threshold_factor: float | None,
    per_channel: bool,
    activation_bits: int | None,
) -> TernaryQuantConfig:
    if config is None:
        return TernaryQuantConfig(threshold_factor, per_channel, activation_bits=activation_bits)
    if threshold_factor is not None or not per_channel:
        raise ValueError("threshold_factor and per_channel are fields of config; set them there, not in both places")
    if activation_bits is None or activation_bits == config.activation_bits:
        return config
    if config.activation_bits is not None:
        raise ValueError(f"activation_bits is {activation_bits}, but config says {config.activation_bits}")
    return dataclasses.replace(config, activation_bits=activation_bits)


def _check_backend(backend: str) -> None:
    if backend not in ("auto", "cuda", "python"):
        raise ValueError(f"backend must be one of 'auto', 'cuda', 'python', got {backend!r}")
    if backend == "cuda":
        if not any(row["device"] == "cuda" for row in _C.kernels()):
            raise RuntimeError("backend='cuda', but this build of bittorch has no CUDA kernels; rebuild it beside nvcc")
        if not torch.cuda.is_available():
            raise RuntimeError("backend='cuda', but torch.cuda.is_available() is False; use backend='auto'")


class TernaryLinear(nn.Linear):
    """A linear layer that trains through ternary weights.

    ``y = x @ (codes * scale)^T + bias`` with ``codes, scale`` the quantised ``weight``. The optimiser updates the
    full-precision ``weight``; its gradient is straight-through. In ``eval()`` the layer gives, bit for bit, what
    `bittorch.export_for_inference` makes of it.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        threshold_factor: None is the method's own value; 0.05 of the largest magnitude for the default method.
        per_channel: one scale a row; False is one for the layer.
        quantize: False makes it a plain `torch.nn.Linear` (full precision first, ternary later).
        backend: ``auto`` runs the kernels of the tensor's device, ``cuda`` insists on CUDA, ``python`` runs plain
            torch, whose sums round differently.
        config: everything else of `bittorch.TernaryQuantConfig`: method, scale rule, granularity.
        activation_bits: None for floating activations, else 8, 16 or 24, as in `bittorch.TernaryQuantConfig`.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``, in the dtype of ``weight`` or of autocast.

    Raises:
        ValueError: a bad configuration, groups that do not divide in_features, an unknown backend.
        RuntimeError: ``backend="cuda"`` where there is none; in forward, ``x`` of another dtype than ``weight``.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold_factor: float | None = None,
        per_channel: bool = True,
        quantize: bool = True,
        backend: Backend = "auto",
        *,
        config: TernaryQuantConfig | None = None,
        activation_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config = _resolve_config(config, threshold_factor, per_channel, activation_bits)
        self.config.check_in_features(in_features)
        _check_backend(backend)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.quantize = quantize
        self.backend = backend

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: TernaryQuantConfig | None = None) -> TernaryLinear:
        """A ternary layer that shares the parameters of ``linear``."""
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, config=config, device="meta"
        )  # meta: no weights are made only to be thrown away
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.quantize:
            return super().forward(input)
        if self.backend == "cuda" and not input.is_cuda:
            raise RuntimeError(f"backend='cuda', but the input is on {input.device}; move it with .to('cuda')")
        ops.check_input(input, self.weight)
        op = reference.ternary_linear if self.backend == "python" else torch.ops.bittorch.ternary_linear.default
        activation_bits = self.config.activation_bits or 0
        return op(input, self.weight, self.bias, *self.config.op_args(), activation_bits)

    def get_quantized_weight(self) -> Tensor:
        """``codes * scale`` in the dtype of ``weight``, detached: what the forward pass multiplies by.

        Raises:
            ValueError: the weight holds NaN or Inf.
        """
        weight = _gathered(self.weight).detach()
        return TernaryQuantizer(self.config).quantize_ste(weight) if self.quantize else weight.clone()

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *_describe(self.config, self.quantize, self.backend)])


def _describe(config: TernaryQuantConfig, quantize: bool, backend: str) -> list[str]:
    """What a training layer adds to its repr."""
    parts = [f"method={config.method}", f"scale={config.scale}", f"threshold_factor={config.threshold_factor:g}"]
    groups = f"({config.group_size})" if config.granularity == "group" else ""
    parts.append(f"granularity={config.granularity}{groups}")
    if config.activation_bits:
        parts.append(f"activation_bits={config.activation_bits}")
    if not quantize:
        parts.append("quantize=False")
    if backend != "auto":
        parts.append(f"backend={backend}")
    return parts


def _gathered(weight: Tensor) -> Tensor:
    """The whole of a weight that is sharded over processes (FSDP2), any other weight itself."""
    full_tensor = getattr(weight, "full_tensor", None)
    return full_tensor() if full_tensor else weight
