"""Ternary quantisation of weights: w is about code * scale with code in {-1, 0, +1}."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bittorch import ops
from bittorch.quant.base import QuantConfig, Quantizer, QuantType, straight_through_once
from bittorch.quant.learned import LEARNED, RULES, TWO_SCALES

Method = Literal["max", "twn", "absmean", "absmedian", "optimal", "nm34", "lsq", "seq", "ttq"]
ScaleRule = Literal["ls", "mean", "max", "rms", "learned"]
Ste = Literal["identity", "clipped"]
Granularity = Literal["tensor", "channel", "group"]


DEFAULT_METHOD: Method = "max"
DEFAULT_SCALE: ScaleRule = "rms"
"""What a configuration is that names neither a method nor a threshold."""


class _Defaults(NamedTuple):
    threshold_factor: float
    scale: ScaleRule


_METHODS: dict[str, _Defaults] = {
    "max": _Defaults(0.05, "ls"),
    "twn": _Defaults(0.75, "ls"),
    "absmean": _Defaults(0.5, "mean"),
    "absmedian": _Defaults(0.5, "ls"),
    "optimal": _Defaults(0.0, "ls"),
    "nm34": _Defaults(0.0, "ls"),
    **{name: _Defaults(rule.threshold, "learned") for name, rule in RULES.items()},
    TWO_SCALES: _Defaults(0.05, "learned"),
}
_OWN_THRESHOLD = ("optimal", "nm34", *RULES)
DEFAULT_GROUP_SIZE = 128
ActivationBits = int | Literal["ternary"] | None
ACTIVATION_BITS = (None, 8, 16, 24)
TERNARY: Literal["ternary"] = "ternary"
"""Activations that are trits with a scale per token."""
_MAX_INT8_IN_FEATURES = 1 << 22
_SCALES = tuple(rule for rule in get_args(ScaleRule) if rule != "learned")
_ROADMAP_METHOD: Method = "max"
_UNNAMED: Any = None  # of a field that __post_init__ resolves
_STES = ("identity", "clipped")
_GRANULARITIES = ("tensor", "channel", "group")


def _one_of(name: str, value: object, valid: tuple[object, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def _number(name: str, value: object, kind: type) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {'an integer' if kind is Integral else 'a number'}, got {value!r}")


def _known_bits(activation_bits: object) -> None:
    if isinstance(activation_bits, float):  # 8.0 equals 8, and is no argument of the ops
        raise ValueError(f"activation_bits must be one of None, 8, 16, 24, got {activation_bits!r}")
    _one_of("activation_bits", activation_bits, ACTIVATION_BITS)


def _known_activations(activation_bits: object) -> None:
    if isinstance(activation_bits, str) and activation_bits != TERNARY:
        valid = ", ".join(map(repr, (*ACTIVATION_BITS, TERNARY)))
        raise ValueError(f"activation_bits must be one of {valid}, got {activation_bits!r}")
    if activation_bits != TERNARY:
        _known_bits(activation_bits)


def no_trits(activation_bits: ActivationBits, what: str) -> int | None:
    """The same where activations are no trits; ValueError that ``what`` has no such product."""
    if activation_bits == TERNARY:
        raise ValueError(
            f"{what} has no activation_bits={TERNARY!r}, which TernaryLinear and TernaryLinearInference at depth 1 "
            "have; give 8, 16, 24 or None"
        )
    return activation_bits


def check_activation_bits(activation_bits: int | None, in_features: int) -> None:
    """Raises ValueError for other bits, and where int32 could not hold the sum of a row of int8 activations."""
    _known_bits(activation_bits)
    if activation_bits is not None and in_features > _MAX_INT8_IN_FEATURES:
        raise ValueError(
            f"activation_bits={activation_bits} takes in_features up to {_MAX_INT8_IN_FEATURES}, got {in_features}"
        )


def check_finite(rows: Tensor, scale: Tensor) -> None:
    """Raises ValueError where a scale is not finite, which tells of NaN or Inf in the weights; waits for the device."""
    if bool(torch.isfinite(scale).all()):
        return
    bad = int((~torch.isfinite(rows)).sum())
    if not bad:
        raise ValueError(f"the learned scale must be finite, got {scale[~torch.isfinite(scale)][0]}")
    row = int((~torch.isfinite(rows)).any(1).nonzero()[0])
    raise ValueError(f"w must be finite, got {bad} NaN or Inf of {rows.numel()} values, the first in row {row}")


@dataclasses.dataclass(frozen=True)
class TernaryQuantConfig(QuantConfig):
    """How weights become ternary; `bittorch.ops.ternary_quantize` has the formulas.

    Args:
        threshold_factor: in [0, 1], a share of what the method measures. Default: max and ttq 0.05 (of the largest
            magnitude), twn 0.75 (of the mean), absmean and absmedian 0.5 (round to nearest). The other methods find
            their own threshold. Without a method, the method is max.
        per_channel: False is ``granularity="tensor"``.
        method: ``max`` (the default), ``twn``, ``absmean`` (the codes of BitNet b1.58), ``absmedian``, ``optimal`` or
            ``nm34`` (3:4 sparse: one of four columns is 0). With ``lsq``, ``seq`` and ``ttq`` the scale is a parameter
            of the layer (`bittorch.quant.learned` has the formulas).
        scale: ``ls`` (least squares: the mean of the kept magnitudes), ``rms`` (codes times scale have the norm of the
            weights), ``mean`` or ``max``. Default: ``rms`` if neither a method nor a threshold_factor is given, else
            ``ls``; ``mean`` for absmean; ``learned`` where it is a parameter. ``max`` is the rule of libraries that
            scale by the largest weight, and ruins trained weights: see docs/reference/ternary_format.md.
        granularity: what shares a scale: ``tensor``, ``channel`` (the default) or ``group`` (the default with a
            group_size).
        group_size: columns of a scale group, a multiple of 4 that divides in_features; default 128.
        activation_bits: None for floating activations, 8 for int8 with one scale per token (W1.58A8), 16 or 24 for
            exact sums of two or three int8 digits, which are the same bits on every device. docs/reference/ops.md has
            the errors. ``"ternary"``, for linear layers alone: trits with one scale per token (W1.58A1.58), by
            `bittorch.ops.ternary_quantize` with method twn, threshold 0.75 and the least-squares scale, whatever the
            method of the weights is.
        ste: the straight-through gradient of a weight: ``identity``, or ``clipped``, zero where ``|w| > 1.5 scale``.
            lsq and seq have their own clip.

    Defaults are filled in at once: ``TernaryQuantConfig().threshold_factor == 0.05``. `dataclasses.replace` keeps them;
    to change the method write ``replace(config, method="twn", threshold_factor=None, scale=None)``.

    Raises:
        ValueError: an unknown name, a value out of range, ``per_channel=False`` with another granularity than tensor,
            or a group_size with another granularity than group.
        TypeError: a threshold_factor that is not a number, a group_size that is not an integer.
    """

    quant_type: ClassVar[QuantType] = QuantType.TERNARY

    threshold_factor: float | None = None
    per_channel: bool = True
    _: dataclasses.KW_ONLY
    method: Method = _UNNAMED
    scale: ScaleRule | None = None
    granularity: Granularity | None = None
    group_size: int | None = None
    activation_bits: ActivationBits = None
    ste: Ste = "identity"

    def __post_init__(self) -> None:
        method, own_scale = self._named()
        object.__setattr__(self, "method", method)
        own = _METHODS[method]
        if self.threshold_factor is not None:
            _number("threshold_factor", self.threshold_factor, Real)
        _one_of("per_channel", self.per_channel, (True, False))
        group_size = DEFAULT_GROUP_SIZE if self.group_size is None else self.group_size
        _number("group_size", group_size, Integral)
        threshold = own.threshold_factor if self.threshold_factor is None else float(self.threshold_factor)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold_factor must be in [0, 1], got {self.threshold_factor!r}")
        if method in _OWN_THRESHOLD and threshold != own.threshold_factor:
            raise ValueError(f"method {method!r} finds its own threshold; leave out threshold_factor={threshold}")
        scale = own_scale if self.scale is None else self.scale
        _one_of("scale", scale, ("learned",) if self.learned else _SCALES)
        _one_of("ste", self.ste, ("identity",) if self.learned else _STES)
        if method == TWO_SCALES and self.activation_bits is not None:
            raise ValueError(f"method 'ttq' takes floating activations, got activation_bits={self.activation_bits}")
        granularity = self.granularity or self._granularity()
        _one_of("granularity", granularity, _GRANULARITIES)
        if not self.per_channel and granularity != "tensor":
            raise ValueError(f"per_channel=False means granularity='tensor', got granularity={granularity!r}")
        if group_size <= 0 or group_size % 4:
            raise ValueError(f"group_size must be a positive multiple of 4, got {group_size}")
        if granularity != "group" and group_size != DEFAULT_GROUP_SIZE:
            raise ValueError(
                f"group_size={group_size} means granularity='group', got granularity={granularity!r}; set "
                "granularity='group', or group_size=None"
            )
        _known_activations(self.activation_bits)
        bits = self.activation_bits
        for name, value in (
            ("threshold_factor", threshold),
            ("per_channel", granularity != "tensor"),
            ("scale", scale),
            ("granularity", granularity),
            ("group_size", int(group_size)),
            ("activation_bits", bits if bits is None or bits == TERNARY else int(bits)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def roadmap(cls) -> TernaryQuantConfig:
        """What the documented arguments mean, whatever the default is: a threshold of 0.05 of the largest magnitude of
        a row, and the least-squares scale of each row."""
        return cls(0.05, True, method="max", scale="ls")

    def _named(self) -> tuple[Method, ScaleRule]:
        """The method, and the scale where none is given."""
        if self.method is None and self.threshold_factor is None:
            return DEFAULT_METHOD, DEFAULT_SCALE
        method = _ROADMAP_METHOD if self.method is None else self.method
        _one_of("method", method, tuple(_METHODS))
        return method, _METHODS[method].scale

    def _granularity(self) -> Granularity:
        """What is meant where no granularity is given."""
        if not self.per_channel:
            return "tensor"
        return "channel" if self.group_size is None else "group"

    @property
    def learned(self) -> bool:
        """Whether the scale is a parameter of the layer."""
        return self.method in LEARNED

    @property
    def packs(self) -> bool:
        """Whether trained layers have a packed form. Method ttq has two scales and has none."""
        return self.method != TWO_SCALES

    @property
    def grouping(self) -> tuple[Granularity, int]:
        """Granularity and group_size."""
        assert self.granularity is not None
        assert self.group_size is not None
        return self.granularity, self.group_size

    def op_args(self) -> tuple[str, str, float, str, int]:
        """The arguments that `bittorch.ops.ternary_quantize` and `ternary_linear` take after their tensors."""
        assert self.scale is not None
        assert self.threshold_factor is not None
        return self.method, self.scale, self.threshold_factor, *self.grouping

    def check_in_features(self, in_features: int) -> None:
        """Raises ValueError when groups do not divide a row, or a row is too long for int8 sums."""
        if self.activation_bits != TERNARY:
            check_activation_bits(self.activation_bits, in_features)
        granularity, group_size = self.grouping
        if granularity == "group" and in_features % group_size:
            raise ValueError(
                f"group_size must divide in_features, got group_size={group_size} and in_features={in_features}"
            )
        if granularity == "group" and self.learned and not in_features:
            raise ValueError(
                f"a learned scale per group needs in_features above 0; method {self.method!r} has no groups"
            )


class TernaryQuantizer(Quantizer):
    """Quantises weights by one configuration.

    Weights have at least two dimensions; the first is out_features, the others together are in_features.

    Raises:
        ValueError: a method whose scale is a parameter; a `bittorch.TernaryLinear` has it.
    """

    config: TernaryQuantConfig

    def __init__(self, config: TernaryQuantConfig | None = None) -> None:
        super().__init__(config or TernaryQuantConfig())
        if self.config.learned:
            raise ValueError(f"method {self.config.method!r} learns its scale, in a layer; a quantiser has none to use")

    def __repr__(self) -> str:
        return f"TernaryQuantizer({self.config})"

    def quantize_packed(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Packed codes ``(out_features, ceil(in_features / 4))`` uint8, and float32 scales.

        Raises:
            ValueError: fewer than two dimensions, NaN or Inf in ``w``, or groups that do not divide a row.
        """
        if w.dim() < 2:
            raise ValueError(f"w must have at least two dimensions, (out_features, ...), got shape {tuple(w.shape)}")
        rows = w.detach().flatten(1)
        self.config.check_in_features(rows.shape[1])
        w_packed, scale = ops.ternary_quantize(rows, *self.config.op_args())
        check_finite(rows, scale)
        return w_packed, scale

    def quantize(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """int8 codes of the shape of ``w``, and float32 scales; raises as `quantize_packed`."""
        w_packed, scale = self.quantize_packed(w)
        in_features = w[0].numel() if len(w) else w.flatten(1).shape[1]
        return ops.ternary_unpack(w_packed, None, in_features, torch.int8).view(w.shape), scale

    def dequantize(self, codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``codes * scale`` in ``dtype``; codes of any shape that `quantize` gives."""
        rows = codes.flatten(1)
        return ops.ternary_unpack(ops.ternary_pack(rows), scale, rows.shape[1], dtype).view(codes.shape)

    def fake_quantize(self, w: Tensor) -> Tensor:
        """``codes * scale`` in the dtype of ``w``, with the gradient of the identity: the weight of a training layer.

        The value is the product itself, not ``w + (codes * scale - w)``, which rounds differently.
        """
        w_packed, scale = self.quantize_packed(w)
        value = ops.ternary_unpack(w_packed, scale, w.detach().flatten(1).shape[1], w.dtype)
        return straight_through_once(w, value.view(w.shape))


def ternary_quantize(
    w: Tensor, threshold_factor: float | None = None, per_channel: bool = True, **config: Any
) -> tuple[Tensor, Tensor]:
    """Quantises a weight to ternary codes.

    Args:
        w: ``(out_features, ...)`` float32, float16 or bfloat16.
        threshold_factor, per_channel, config: the fields of `TernaryQuantConfig`.

    Returns:
        int8 codes in {-1, 0, +1} of the shape of ``w``, and the float32 scale, ``(1,)``, ``(out_features,)`` or
        ``(out_features, in_features / group_size)``.

    Raises:
        ValueError: NaN or Inf in ``w``, a bad configuration, or groups that do not divide a row.
    """
    return TernaryQuantizer(TernaryQuantConfig(threshold_factor, per_channel, **config)).quantize(w)


def ternary_quantize_ste(
    w: Tensor, threshold_factor: float | None = None, per_channel: bool = True, **config: Any
) -> tuple[Tensor, Tensor]:
    """`ternary_quantize` with the straight-through gradient.

    The gradient of the codes passes to ``w`` unchanged, and the scale has none. ``codes * scale`` is the weight that
    `bittorch.TernaryLinear` multiplies by; through this product ``w`` receives ``scale`` times the gradient. The layer
    itself, and `ternary_fake_quantize`, pass the gradient of the product unchanged.

    Args and Raises: as `ternary_quantize`.

    Returns:
        codes in {-1, 0, +1} of the shape and dtype of ``w``, and the float32 scale.

    Source: Bengio et al. 2013 (straight-through estimator).
    """
    return TernaryQuantizer(TernaryQuantConfig(threshold_factor, per_channel, **config)).quantize_ste(w)


def ternary_fake_quantize(
    w: Tensor, threshold_factor: float | None = None, per_channel: bool = True, **config: Any
) -> Tensor:
    """The dequantised weight ``codes * scale`` in the dtype of ``w``; its gradient passes to ``w`` unchanged.

    Args and Raises: as `ternary_quantize`. Source: Bengio et al. 2013 (straight-through estimator).
    """
    return TernaryQuantizer(TernaryQuantConfig(threshold_factor, per_channel, **config)).fake_quantize(w)
