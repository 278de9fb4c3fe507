import dataclasses

import pytest
import torch

from bittorch.quant import Int4QuantConfig, QuantConfig, Quantizer, QuantType, TernaryQuantConfig, TernaryQuantizer
from tests import helpers


def test_quant_types_have_stable_values() -> None:
    assert {kind.name: kind.value for kind in QuantType} == {"TERNARY": "ternary", "INT4": "int4"}
    assert TernaryQuantConfig.quant_type is QuantType.TERNARY
    assert Int4QuantConfig.quant_type is QuantType.INT4


def test_quantizer_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Quantizer()
    assert Quantizer.__abstractmethods__ == {"quantize"}
    assert isinstance(TernaryQuantizer(), Quantizer)


def test_incomplete_quantizer_is_abstract() -> None:
    class Half(Quantizer):
        def dequantize(self, codes, scale, dtype=torch.float32):
            return codes

    with pytest.raises(TypeError, match="quantize"):
        Half()


@dataclasses.dataclass
class LevelsConfig(QuantConfig):
    levels: int = 7


class LevelsQuantizer(Quantizer):
    """Integers up to ``levels``, one scale per group of 4 columns."""

    def quantize(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups = w.unflatten(1, (-1, 4))
        scale = groups.abs().amax(2) / self.config.levels
        return (groups / scale[..., None]).round().flatten(1), scale


def test_a_quantizer_of_the_users_needs_one_method() -> None:
    w = helpers.randn(3, 8).requires_grad_()
    quantizer = LevelsQuantizer(LevelsConfig(levels=5))
    codes, scale = quantizer.quantize_ste(w)
    assert codes.abs().max() == 5
    assert not scale.requires_grad
    product = quantizer.dequantize(codes, scale)
    expected = codes.detach().double() * scale.double().repeat_interleave(4, 1)
    helpers.assert_near(product, expected, 1e-7)
    assert float((product - w).detach().abs().max()) <= float(scale.max()) / 2 * 1.0001
    g = helpers.randn(3, 8, seed=1)
    codes.backward(g)
    assert torch.equal(w.grad, g)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (3, 2)], ids=str)
def test_dequantize_takes_every_granularity(shape: tuple[int, ...]) -> None:
    codes, scale = helpers.random_codes(3, 8), torch.rand(shape) + 0.5
    groups = scale.view(1, 1) if scale.numel() == 1 else scale.view(3, -1)
    expected = codes.double() * groups.double().repeat_interleave(8 // groups.shape[1], 1)
    assert torch.equal(LevelsQuantizer().dequantize(codes, scale).double(), expected)


@pytest.mark.parametrize("shape", [(2,), (3, 3), (0,), (2, 2, 2)], ids=str)
def test_dequantize_refuses_scales_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scale must be \(1,\), \(3,\) or \(3, groups\)"):
        LevelsQuantizer().dequantize(helpers.random_codes(3, 8), torch.ones(shape))


def test_config_of_the_users_survives_a_dict() -> None:
    config = LevelsConfig(levels=3)
    assert config.to_dict() == {"quant_type": "LevelsConfig", "levels": 3}
    assert LevelsConfig.from_dict(config.to_dict()) == config

    class Plain(QuantConfig):
        levels = 3

    with pytest.raises(TypeError, match="Plain must be a dataclass"):
        Plain().to_dict()


def test_config_is_frozen_and_comparable() -> None:
    config = TernaryQuantConfig(method="max")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "twn"
    assert config == TernaryQuantConfig(0.05)
    assert config != TernaryQuantConfig(0.06)
    assert len({config, TernaryQuantConfig(method="max"), TernaryQuantConfig(method="twn")}) == 2
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
