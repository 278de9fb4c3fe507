"""What every quantiser has: a kind, a configuration that survives JSON, and three verbs."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor


class QuantType(Enum):
    """What the weights become."""

    TERNARY = "ternary"
    INT4 = "int4"


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """Base of the configurations: frozen, comparable, JSON-safe."""

    quant_type: ClassVar[QuantType]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the kind under ``quant_type``."""
        return {"quant_type": self.quant_type.value, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`. Raises ValueError for another kind or an unknown field."""
        fields = dict(values)
        kind = fields.pop("quant_type", None)
        if kind != cls.quant_type.value:
            raise ValueError(f"{cls.__name__} wants quant_type={cls.quant_type.value!r}, got {kind!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**fields)


class Quantizer(ABC):
    """Turns a weight into codes and a scale, and back."""

    @abstractmethod
    def quantize(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the shape of ``w``, and float32 scales."""

    @abstractmethod
    def dequantize(self, codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``codes * scale`` in ``dtype``."""

    @abstractmethod
    def quantize_ste(self, w: Tensor) -> Tensor:
        """The dequantised weight, with the gradient of the identity."""
