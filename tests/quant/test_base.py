import dataclasses

import pytest
import torch

from bittorch.quant import Int4QuantConfig, QuantConfig, Quantizer, QuantType, TernaryQuantConfig, TernaryQuantizer


def test_quant_types_have_stable_values() -> None:
    assert {kind.name: kind.value for kind in QuantType} == {"TERNARY": "ternary", "INT4": "int4"}
    assert TernaryQuantConfig.quant_type is QuantType.TERNARY
    assert Int4QuantConfig.quant_type is QuantType.INT4


def test_quantizer_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Quantizer()
    assert Quantizer.__abstractmethods__ == {"quantize", "dequantize", "quantize_ste"}
    assert isinstance(TernaryQuantizer(), Quantizer)


def test_incomplete_quantizer_is_abstract() -> None:
    class Half(Quantizer):
        def quantize(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return w, w

    with pytest.raises(TypeError, match="dequantize"):
        Half()


def test_config_is_frozen_and_comparable() -> None:
    config = TernaryQuantConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "twn"
    assert config == TernaryQuantConfig(0.05)
    assert config != TernaryQuantConfig(0.06)
    assert len({config, TernaryQuantConfig(), TernaryQuantConfig(method="twn")}) == 2
    assert isinstance(config, QuantConfig)


def test_from_dict_refuses_another_kind() -> None:
    with pytest.raises(ValueError, match="wants quant_type='ternary', got 'int4'"):
        TernaryQuantConfig.from_dict({"quant_type": "int4"})
    with pytest.raises(ValueError, match="wants quant_type='ternary', got None"):
        TernaryQuantConfig.from_dict({"method": "max"})


def test_from_dict_refuses_unknown_fields_and_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"has no field colour, size; it has activation_bits, .*threshold_factor"):
        TernaryQuantConfig.from_dict({"quant_type": "ternary", "size": 1, "colour": 2})


def test_from_dict_leaves_its_argument_alone() -> None:
    values = TernaryQuantConfig().to_dict()
    before = dict(values)
    TernaryQuantConfig.from_dict(values)
    assert values == before
