import pytest

from bittorch.quant import Int4QuantConfig


def test_int4_is_not_implemented_and_says_what_is() -> None:
    with pytest.raises(NotImplementedError, match="TernaryQuantConfig here, or torchao's Int4WeightOnlyConfig"):
        Int4QuantConfig()
    with pytest.raises(NotImplementedError, match="Int4WeightOnlyConfig"):
        Int4QuantConfig(group_size=128)


def test_int4_from_dict_is_not_implemented() -> None:
    with pytest.raises(NotImplementedError):
        Int4QuantConfig.from_dict({"quant_type": "int4"})
