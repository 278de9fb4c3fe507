"""Int4 weights: a name that is reserved, not an implementation."""

import dataclasses
from typing import ClassVar

from bittorch.quant.base import QuantConfig, QuantType


@dataclasses.dataclass(frozen=True)
class Int4QuantConfig(QuantConfig):
    """Placeholder for 4-bit integer weights, which bittorch does not have.

    Raises:
        NotImplementedError: always; torchao's ``Int4WeightOnlyConfig`` does this today.
    """

    quant_type: ClassVar[QuantType] = QuantType.INT4

    def __post_init__(self) -> None:
        raise NotImplementedError(
            "bittorch has no int4 weights; use TernaryQuantConfig here, or torchao's Int4WeightOnlyConfig"
        )
