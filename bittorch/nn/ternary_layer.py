"""What the training layers share: how they quantise, and the scale that some methods learn."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar, Literal, NoReturn, ParamSpec, TypeVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import fusion

from bittorch import ops
from bittorch._extension import has_cuda_ext
from bittorch.nn.first_weights import FirstWeights
from bittorch.nn.learned_scale import gathered
from bittorch.nn.parts import narrowed, no_float64, no_script, unpacked
from bittorch.quant import TernaryQuantConfig, TernaryQuantizer, learned
from bittorch.quant.ternary import ActivationBits, check_finite, no_trits

Backend = Literal["auto", "cuda", "python"]
_Args = ParamSpec("_Args")
_Layer = TypeVar("_Layer", bound="TernaryLayer")
_FUSIONS = ("fuse_conv_bn_eval", "fuse_linear_bn_eval")  # of torch.nn.utils.fusion


def resolve_config(
    config: TernaryQuantConfig | None,
    threshold_factor: float | None,
    per_channel: bool,
    activation_bits: ActivationBits,
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


def points_to_config(init: Callable[_Args, None]) -> Callable[_Args, None]:
    """The constructor of a layer; its TypeError for a field of the configuration says where the field belongs."""
    fields = {field.name for field in dataclasses.fields(TernaryQuantConfig)}
    misplaced = fields - inspect.signature(init).parameters.keys()

    @functools.wraps(init)
    def checked(*args: _Args.args, **kwargs: _Args.kwargs) -> None:
        if found := [f"{name}={value!r}" for name, value in kwargs.items() if name in misplaced]:
            settings = ", ".join(found)
            raise TypeError(
                f"{type(args[0]).__name__} takes {settings} as part of its configuration; write "
                f"config=TernaryQuantConfig({settings})"
            )
        init(*args, **kwargs)

    return checked


def check_backend(backend: str) -> None:
    if backend not in ("auto", "cuda", "python"):
        raise ValueError(f"backend must be one of 'auto', 'cuda', 'python', got {backend!r}")
    if backend == "cuda":
        if not has_cuda_ext():
            raise RuntimeError("backend='cuda', but this build of bittorch has no CUDA kernels; rebuild it beside nvcc")
        if not torch.cuda.is_available():
            raise RuntimeError("backend='cuda', but torch.cuda.is_available() is False; use backend='auto'")


def check_dtype(dtype: torch.dtype | None, quantize: bool = True, backend: str = "auto") -> None:
    """Raises TypeError for dtypes that are not floating, and for float64 where no plain torch takes it."""
    if quantize and backend != "python" and (dtype or torch.get_default_dtype()) == torch.float64:
        raise TypeError(no_float64("dtype"))
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:  # what is no dtype, torch refuses
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")


class TernaryLayer(FirstWeights):
    """Stands before the layer of torch among the bases; a row is an output, a filter, or an entry of a table."""

    bias: Any  # a parameter or None, of the layer of torch
    quantize: bool
    backend: Backend
    quant_lambda: float
    is_share: ClassVar[bool] = False
    """Whether a subclass computes over several processes what the layer computes in one; export then has the whole."""
    forward_ran: bool = False
    """Whether the layer was ever called; False while others ran says that the model reads its weight itself."""

    def _note_call(self) -> None:
        """Keeps that forward ran: 0.1 us, no guard and no new graph in compiled code, nothing in exported code."""
        if not torch.compiler.is_exporting():
            self.__dict__["forward_ran"] = True  # an ordinary attribute takes ten times as long on a module

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "weight" in self.__dict__.get("_parameters", ()):
            self._check_fusion(sys._getframe(1).f_code)
            if hasattr(value, "full_tensor"):  # fully_shard, which takes the scale next, as it then stands
                self.refresh_scale()
        super().__setattr__(name, value)
        if name == "weight" and self.__dict__.get("_scale_state") == "meta" and not self.weight.is_meta:
            scale = self._parameters.get("weight_scale")
            if scale is not None and scale.is_meta:  # an optimiser that is made next must find the parameter
                self.reset_scale()

    def _check_fusion(self, caller: CodeType) -> None:
        """Refuses to be folded as a dense layer: other weights have other codes, and a learned scale stays behind."""
        if self.quantize and caller.co_name in _FUSIONS and caller.co_filename == fusion.__file__:
            raise TypeError(
                f"{caller.co_name} multiplies the weight of a {type(self).__name__}, which then quantises otherwise; "
                "export the model, then fold into scale and bias with bittorch.utils.fold_batch_norm_(packed)"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TernaryLayer:
        """Moves and casts all parameters, but no cast rounds the learned scale, which packed layers keep in float32."""
        scale = self._parameters.get("weight_scale")

        def moved(t: Tensor) -> Tensor:
            result = fn(t)
            if scale is None or result.dtype == t.dtype or not (t is scale or t is scale.grad):
                return result
            return t.to(result.device, copy=True)

        super()._apply(moved, recurse)
        return self

    def _configure(
        self,
        config: TernaryQuantConfig | None,
        threshold_factor: float | None,
        per_channel: bool,
        activation_bits: ActivationBits,
        quantize: bool,
        backend: str,
        dtype: torch.dtype | None,
    ) -> None:
        """What a constructor does first, with the arguments that all layers have: the configuration, and checks."""
        self.config = resolve_config(config, threshold_factor, per_channel, activation_bits)
        check_backend(backend)
        check_dtype(dtype, quantize, backend)

    def _set_up(self, quantize: bool, backend: Backend) -> None:
        """What is left to do once the weight is there."""
        if not isinstance(self, torch.nn.Linear):
            no_trits(self.config.activation_bits, f"a {type(self).__name__}")
        self.quantize = quantize
        self.backend = backend
        self.quant_lambda = 1.0
        self._make_scale()
        self._preserve_norm()

    def _sharing(self: _Layer, layer: nn.Module) -> _Layer:
        """This layer, made on the meta device, with the parameters and the mode of a dense one in place of its own."""
        weight: Tensor = layer.weight  # type: ignore[assignment]  # of a layer with weights
        check_dtype(weight.dtype)
        self.weight = weight
        if self.bias is not None:
            self.bias = layer.bias
        if self.weight_scale is not None:  # made when the weight came
            self.weight_scale.requires_grad_(weight.requires_grad)
        return self.train(layer.training)

    def __prepare_scriptable__(self) -> NoReturn:
        no_script(self)

    @property
    def _in_parts(self) -> bool:
        """Whether codes come first, so that their gradient can go another way than straight through."""
        return self.config.learned or self.config.ste == "clipped" or (self.training and self.quant_lambda < 1)

    @property
    def _share(self) -> float:
        """The share of quantisation, as it is now."""
        return self.quant_lambda if self.training else 1.0

    def _leaf_step(self) -> Tensor | None:
        """`_step`; while torch.fx traces, when parameters are proxies, what they hold is brought up to date instead."""
        if self.weight_scale is None or not isinstance(self.weight_scale, torch.fx.Proxy):
            return None if self.weight_scale is None else self._step()
        scale, weight, fresh = self._parameters["weight_scale"], self._parameters["weight"], self._fresh
        if scale is not None and weight is not None and fresh is not None and torch.equal(scale, fresh[0].to(scale)):
            value = self._rule(weight)
            with torch.no_grad():
                scale.copy_(value)
            self._fresh = value, fresh[1]
        return self.weight_scale

    def quantize_packed(self) -> tuple[Tensor, Tensor]:
        """Packed codes and float32 scales of ``weight`` as it stands, an output or filter a row: what export keeps.

        Raises:
            ValueError: NaN or Inf in the weight or the learned scale; method ttq, which has no packed form.
        """
        rows = narrowed(self._filters(gathered(self.weight).detach()).flatten(1))
        if self.weight_scale is None:
            return TernaryQuantizer(self.config).quantize_packed(rows)
        if not self.config.packs:
            raise ValueError(
                "method 'ttq' has two scales, and a packed row holds one; train with method='lsq' to export"
            )
        w_packed, scale = learned.quantize_packed(rows, self._stored_step(), self.config.method)
        check_finite(rows, scale)
        return w_packed, scale

    def get_quantized_weight(self) -> tuple[Tensor, Tensor]:
        """Codes and scale of ``weight`` as it stands, detached: ``(w_tern, scale)``.

        Returns:
            codes in {-1, 0, +1} of the dtype and shape of ``weight``, and the float32 scale, ``(1,)``,
            ``(out_features,)`` or ``(out_features, groups)``. `dequantized_weight` is their product.

        Raises:
            ValueError: the weight holds NaN or Inf; method ttq, which has two scales.
        """
        w_packed, scale = self.quantize_packed()
        filters = self._filters(self.weight)
        codes = ops.ternary_unpack(w_packed, None, filters.shape[1:].numel(), torch.int8)
        return self._from_filters(codes.view(filters.shape)).to(filters.dtype), scale

    def dequantized_weight(self) -> Tensor:
        """The dense weight that the forward pass uses, in the dtype and shape of ``weight``, detached.

        ``codes * scale``, one float32 product and one cast; with ``quantize=False`` a copy of ``weight``.

        Raises:
            ValueError: the weight holds NaN or Inf.
        """
        weight = gathered(self.weight).detach()
        if not self.quantize:
            return weight.clone()
        filters = self._filters(weight)
        if self.weight_scale is not None and not self.config.packs:
            factor = float(self.config.threshold_factor or 0)
            dense = learned.two_scales(filters.flatten(1), self._stored_step(), factor).view(filters.shape)
        else:
            dense = unpacked(*self.quantize_packed(), filters)
        return self._from_filters(dense)

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
