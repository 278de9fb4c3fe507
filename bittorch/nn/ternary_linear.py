"""The training layer: a linear layer whose weight is ternary in the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from bittorch import _C, ops
from bittorch.ops import reference
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer, learned
from bittorch.quant.ternary import check_finite

Backend = Literal["auto", "cuda", "python"]


def _resolve_config(
    config: TernaryQuantConfig | None,
    threshold_factor: float | None,
    per_channel: bool,
    activation_bits: int | None,
) -> TernaryQuantConfig:
    if config is None:
        return TernaryQuantConfig(threshold_factor, per_channel, activation_bits=activation_bits)
    if not isinstance(config, TernaryQuantConfig):
        raise TypeError(
            f"config must be a TernaryQuantConfig, got {config!r}; a method alone is TernaryQuantConfig(method=...)"
        )
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


def _check_dtype(dtype: torch.dtype | None) -> None:
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:  # what is no dtype, torch refuses
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")


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

    Attributes:
        weight_scale: with a learned method the parameter that it learns, float32; else None. Leave it out of weight
            decay.
        quant_lambda: below 1, the share of quantisation in training: weight and activations are
            ``v + quant_lambda * (Q(v) - v)``; `bittorch.train.QuantWarmup` raises it. ``eval()`` always quantises.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``, in the dtype of ``weight`` or of autocast.

    Raises:
        TypeError: a config of another class, a dtype that is not floating; under autocast, ``x`` that it does not cast.
        ValueError: a bad configuration, groups that do not divide in_features, an unknown backend.
        RuntimeError: ``backend="cuda"`` where there is none; in forward, ``x`` of another dtype than ``weight``.

    Source: Li et al. 2016 (ternary weight networks); Bengio et al. 2013 (straight-through estimator).
    """

    weight_scale: nn.Parameter | None

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
        _check_dtype(dtype)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.quantize = quantize
        self.backend = backend
        self.quant_lambda = 1.0
        self._make_scale()

    def _make_scale(self) -> None:
        self.register_parameter("weight_scale", None)
        if self.config.learned:
            shape = learned.scale_shape(
                str(self.config.granularity), self.out_features, self.in_features, self.config.group_size
            )
            shape = shape if self.config.packs else (2, *shape)
            scale = torch.empty(shape, dtype=torch.float32, device=self.weight.device)
            self.weight_scale = nn.Parameter(scale, self.weight.requires_grad)
            self.reset_scale()

    @torch.no_grad()
    def reset_scale(self) -> None:
        """The learned scale starts where a good fixed rule has its own."""
        if self.weight_scale is None or self.weight_scale.is_meta:
            return
        rule = ("twn", "ls", 0.75, str(self.config.granularity), self.config.group_size)
        _, scale = ops.ternary_quantize(gathered(self.weight), *rule)
        step = learned.initial_step(self.config.method, scale) if self.config.packs else scale
        _fill(self.weight_scale, step.expand(self.weight_scale.shape))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self._parameters.get("weight_scale") is not None:  # not yet there when nn.Linear.__init__ calls this
            self.reset_scale()

    @classmethod
    def from_linear(cls, linear: nn.Linear, config: TernaryQuantConfig | None = None) -> TernaryLinear:
        """A ternary layer that shares the parameters of ``linear``; TypeError for any other module."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        _check_dtype(linear.weight.dtype)
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, config=config, device="meta"
        )  # meta: no weights are made only to be thrown away
        layer.weight, layer.bias = linear.weight, linear.bias
        layer._make_scale()
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if not self.quantize:
            return super().forward(input)
        if self.backend == "cuda" and not input.is_cuda:
            raise RuntimeError(f"backend='cuda', but the input is on {input.device}; move it with .to('cuda')")
        ops.check_input(input, self.weight)
        if self.config.learned or self.config.ste == "clipped" or (self.training and self.quant_lambda < 1):
            return self._forward_in_parts(input)
        op = reference.ternary_linear if self.backend == "python" else torch.ops.bittorch.ternary_linear.default
        activation_bits = self.config.activation_bits or 0
        return op(input, self.weight, self.bias, *self.config.op_args(), activation_bits)

    def _forward_in_parts(self, input: Tensor) -> Tensor:
        """Codes first, so that their gradient can go another way than straight through."""
        weight, step, config = self.weight, self.weight_scale, self.config
        if step is not None and not config.packs:
            dense = learned.two_scales(weight, step, float(config.threshold_factor or 0))
            if self.training and self.quant_lambda < 1:
                dense = blend(weight, dense, self.quant_lambda)
            return nn.functional.linear(input, dense, self.bias)
        if step is not None:
            w_packed, scale = learned.quantize_packed(weight, step, config.method)
            routed = learned.route(weight, step, config.method)
        else:
            w_packed, scale = ops.ternary_quantize(weight.detach(), *config.op_args())
            routed = learned.clipped(weight, scale) if config.ste == "clipped" else weight
        if self.training and self.quant_lambda < 1:
            return self._warming_up(input, routed, w_packed, scale)
        op = reference.ternary_linear_ste if self.backend == "python" else torch.ops.bittorch.ternary_linear_ste.default
        return op(input, routed, w_packed, scale, self.bias, config.activation_bits or 0)

    def _warming_up(self, input: Tensor, routed: Tensor, w_packed: Tensor, scale: Tensor) -> Tensor:
        with torch.no_grad():
            quantized = ops.ternary_unpack(w_packed, scale, self.in_features, self.weight.dtype)
            mixed = blend(self.weight, quantized, self.quant_lambda)
        if self.config.activation_bits:
            rounded = reference.fake_quantize(input.detach(), self.config.activation_bits)
            input = reference.straight_through(input, blend(input.detach(), rounded, self.quant_lambda))
        return nn.functional.linear(input, reference.straight_through(routed, mixed), self.bias)

    def quantize_packed(self) -> tuple[Tensor, Tensor]:
        """Packed codes and float32 scales of ``weight`` as it stands: what export keeps.

        Raises:
            ValueError: NaN or Inf in the weight or the learned scale; method ttq, which has no packed form.
        """
        weight = gathered(self.weight).detach()
        if self.weight_scale is None:
            return TernaryQuantizer(self.config).quantize_packed(weight)
        if not self.config.packs:
            raise ValueError(
                "method 'ttq' has two scales, and a packed row holds one; train with method='lsq' to export"
            )
        w_packed, scale = learned.quantize_packed(weight, gathered(self.weight_scale), self.config.method)
        check_finite(weight, scale)
        return w_packed, scale

    def get_quantized_weight(self) -> Tensor:
        """The weight that the forward pass multiplies by, in the dtype of ``weight``, detached.

        Raises:
            ValueError: the weight holds NaN or Inf.
        """
        weight = gathered(self.weight).detach()
        if not self.quantize:
            return weight.clone()
        if self.weight_scale is not None and not self.config.packs:
            factor = float(self.config.threshold_factor or 0)
            return learned.two_scales(weight, gathered(self.weight_scale).detach(), factor)
        return ops.ternary_unpack(*self.quantize_packed(), self.in_features, weight.dtype)

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *_describe(self.config, self.quantize, self.backend)])


def _describe(config: TernaryQuantConfig, quantize: bool, backend: str) -> list[str]:
    """What a training layer adds to its repr."""
    parts = [f"method={config.method}", f"scale={config.scale}", f"threshold_factor={config.threshold_factor:g}"]
    groups = f"({config.group_size})" if config.granularity == "group" else ""
    parts.append(f"granularity={config.granularity}{groups}")
    if config.activation_bits:
        parts.append(f"activation_bits={config.activation_bits}")
    if config.ste != "identity":
        parts.append(f"ste={config.ste}")
    if not quantize:
        parts.append("quantize=False")
    if backend != "auto":
        parts.append(f"backend={backend}")
    return parts


def gathered(weight: Tensor) -> Tensor:
    """The whole of a weight that is sharded over processes (FSDP2), any other weight itself."""
    full_tensor = getattr(weight, "full_tensor", None)
    return full_tensor() if full_tensor else weight


def blend(start: Tensor, end: Tensor, share: float) -> Tensor:
    """``start + share * (end - start)``: torch.compile keeps a float that multiplies as an input, where that of
    `torch.lerp` is a constant, and so a new graph for each step of a warm-up."""
    return start + share * (end - start)


def _fill(parameter: Tensor, value: Tensor) -> None:
    """Copies a whole value into a parameter, or into each process's share of one that is sharded."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        value = distribute_tensor(value.contiguous(), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
