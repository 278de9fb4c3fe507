"""Int4 weights: a name that is reserved, not an implementation."""

from typing import Any, ClassVar, NoReturn

from bittorch.quant.base import QuantConfig, QuantType


class Int4QuantConfig(QuantConfig):
    """Placeholder for 4-bit integer weights, which bittorch does not have.

    Args:
        args, kwargs: anything, such as ``group_size=128``.

    Raises:
        NotImplementedError: always; torchao's ``Int4WeightOnlyConfig`` does this today.
    """

    quant_type: ClassVar[QuantType] = QuantType.INT4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NoReturn:
        """As the constructor."""
        cls._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise NotImplementedError(
            "bittorch has no int4 weights; use TernaryQuantConfig here, or torchao's Int4WeightOnlyConfig"
        )
