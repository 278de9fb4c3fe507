"""What every quantiser has: a kind, a configuration that survives JSON, and three verbs.

A quantiser of your own is one method, and its configuration an ordinary dataclass:

>>> @dataclass
... class MyQuantConfig(QuantConfig):
...     my_param: float = 0.5
>>> class MyQuantizer(Quantizer):
...     def quantize(self, w):
...         scale = w.abs().amax(1).clamp(min=1e-5)
...         return (w / scale[:, None]).round(), scale
>>> codes, scale = MyQuantizer(MyQuantConfig()).quantize(weight)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

Config = TypeVar("Config", bound="QuantConfig")


class QuantType(Enum):
    """What the weights become."""

    TERNARY = "ternary"
    INT4 = "int4"


class QuantConfig:
    """Base of the configurations, which are dataclasses, frozen or not; their fields must be JSON values.

    Attributes:
        quant_type: what the weights become; None for a kind that is not in `QuantType`.
    """

    quant_type: ClassVar[QuantType | None] = None

    @classmethod
    def _kind(cls) -> str:
        return cls.quant_type.value if cls.quant_type else cls.__name__

    @classmethod
    def _fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} must be a dataclass; decorate it with @dataclass")
        return dataclasses.fields(cls)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, with the kind under ``quant_type``: that of `QuantType`, or the class name."""
        return {"quant_type": self._kind(), **{field.name: getattr(self, field.name) for field in self._fields()}}

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`. Raises ValueError for another kind or an unknown field."""
        fields = dict(values)
        kind = fields.pop("quant_type", None)
        if kind != cls._kind():
            raise ValueError(f"{cls.__name__} wants quant_type={cls._kind()!r}, got {kind!r}")
        known = {field.name for field in cls._fields()}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**fields)


class _StraightThrough(torch.autograd.Function):
    """Takes a value and passes its gradient to the tensor that it was made from, once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through_once(source: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of ``source``; a second derivative, which would miss the quantiser, raises."""
    result: Tensor = _StraightThrough.apply(source, value)
    return result


class Quantizer(ABC):
    """Turns a weight into codes and a scale, and back. A subclass must define `quantize`; the rest follows from it.

    Args:
        config: kept as ``config``.
    """

    def __init__(self, config: Any = None) -> None:
        self.config = config

    @abstractmethod
    def quantize(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the shape of ``w``, and scales: one for all, one per row, or one per group of columns."""

    def dequantize(self, codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``codes * scale`` in ``dtype``: one float32 product, one cast.

        Args:
            codes: ``(out_features, ...)``.
            scale: ``()``, ``(1,)``, ``(out_features,)`` or ``(out_features, groups)``.

        Raises:
            ValueError: another shape of ``scale``.
        """
        rows = codes.flatten(1)
        per_row = scale.reshape(1, 1) if scale.numel() == 1 else scale.unsqueeze(1) if scale.dim() == 1 else scale
        groups = per_row.shape[-1]
        if per_row.dim() != 2 or len(per_row) not in (1, len(rows)) or not groups or rows.shape[1] % groups:
            raise ValueError(
                f"scale must be (1,), ({len(rows)},) or ({len(rows)}, groups) for codes {tuple(codes.shape)}, "
                f"got {tuple(scale.shape)}"
            )
        return (
            (rows.float().unflatten(1, (groups, rows.shape[1] // groups)) * per_row.float().unsqueeze(2))
            .view(codes.shape)
            .to(dtype)
        )

    def quantize_ste(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """`quantize` with the straight-through gradient: the codes in the dtype of ``w``, and the scale.

        ``d codes / d w`` is the identity, and the scale has no gradient. Through the product ``codes * scale`` a weight
        therefore receives ``scale`` times the gradient of the product.
        """
        codes, scale = self.quantize(w.detach())
        return straight_through_once(w, codes.to(w.dtype)), scale.detach()
