"""What every layer does with inputs that it cannot take, and with empty ones, in each of its ways through the code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bittorch
from bittorch import TernaryConv2d, TernaryConv2dInference, TernaryLinear, TernaryLinearInference, TernaryQuantConfig
from tests import helpers

LINEAR_X, CONV_X = torch.ones(3, 8), torch.ones(2, 4, 5, 5)


def _warming_up(layer: TernaryLinear | TernaryConv2d) -> nn.Module:
    layer.quant_lambda = 0.5
    return layer


def _linear(**fields: object) -> TernaryLinear:
    return TernaryLinear(8, 6, config=TernaryQuantConfig(**fields))


def _conv(**fields: object) -> TernaryConv2d:
    return TernaryConv2d(4, 6, 3, config=TernaryQuantConfig(**fields))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (_linear, LINEAR_X),
    "linear int8": (lambda: _linear(activation_bits=8), LINEAR_X),
    "linear 24 bits": (lambda: _linear(activation_bits=24), LINEAR_X),
    "linear lsq": (lambda: _linear(method="lsq"), LINEAR_X),
    "linear ttq": (lambda: _linear(method="ttq"), LINEAR_X),
    "linear clipped": (lambda: _linear(ste="clipped"), LINEAR_X),
    "linear warm-up": (lambda: _warming_up(_linear()), LINEAR_X),
    "linear python": (lambda: TernaryLinear(8, 6, backend="python"), LINEAR_X),
    "packed linear": (lambda: bittorch.export_for_inference(_linear()), LINEAR_X),
    "packed linear int8": (lambda: bittorch.export_for_inference(_linear(activation_bits=8)), LINEAR_X),
    "conv": (_conv, CONV_X),
    "conv int8": (lambda: _conv(activation_bits=8), CONV_X),
    "conv 24 bits": (lambda: _conv(activation_bits=24), CONV_X),
    "conv lsq": (lambda: _conv(method="lsq"), CONV_X),
    "conv seq int8": (lambda: _conv(method="seq", activation_bits=8), CONV_X),
    "conv ttq": (lambda: _conv(method="ttq"), CONV_X),
    "conv clipped": (lambda: _conv(ste="clipped"), CONV_X),
    "conv clipped python": (
        lambda: TernaryConv2d(4, 6, 3, backend="python", config=TernaryQuantConfig(ste="clipped")),
        CONV_X,
    ),
    "conv warm-up": (lambda: _warming_up(_conv(activation_bits=8)), CONV_X),
    "conv python": (lambda: TernaryConv2d(4, 6, 3, backend="python"), CONV_X),
    "packed conv": (lambda: bittorch.export_for_inference(_conv()), CONV_X),
    "packed conv int8": (lambda: bittorch.export_for_inference(_conv(activation_bits=8)), CONV_X),
}


@helpers.each("autocast", [False, True], ids=["", "autocast"])
@helpers.each("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float64], ids=str)
@helpers.each("name", LAYERS)
def test_other_dtypes_are_refused(name: str, dtype: torch.dtype, autocast: bool) -> None:
    make, x = LAYERS[name]
    layer, got = make(), helpers.dtype_id(dtype)
    error: tuple[type[Exception], str] = TypeError, f"x must be float32, float16.* bfloat16.*, got .*{got}"
    if "packed" not in name and not autocast:  # as nn.Linear
        error = RuntimeError, f"same dtype, got torch.{got} and torch.float32; cast x with .to"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), pytest.raises(error[0], match=error[1]):
        layer(x.to(dtype))


@helpers.each("autocast", [False, True], ids=["", "autocast"])
@helpers.each("name", LAYERS)
def test_empty_batch_is_an_empty_result_with_zero_gradients(name: str, autocast: bool) -> None:
    make, x = LAYERS[name]
    layer, empty = make(), x[:0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(empty)
        assert y.shape == (0, *layer(x).shape[1:])
    y.sum().backward()
    assert empty.grad.shape == empty.shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("kind", [TernaryLinear, TernaryLinearInference, TernaryConv2d, TernaryConv2dInference])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_layers_of_other_dtypes_are_refused(kind: type[nn.Module], dtype: torch.dtype) -> None:
    sizes = (8, 6) if "Linear" in kind.__name__ else (4, 6, 3)
    with pytest.raises(TypeError, match=f"must be float32, float16 or bfloat16, got {dtype}"):
        kind(*sizes, dtype=dtype)


def test_float64_runs_without_quantisation_alone() -> None:
    layer, x = TernaryLinear(8, 6, quantize=False, dtype=torch.float64), LINEAR_X.double()
    assert layer(x).dtype == torch.float64
    layer.quantize = True
    with pytest.raises(TypeError, match=r"the weight must be float32, float16 or bfloat16, got torch.float64"):
        layer(x)


@pytest.mark.parametrize("config", ["twn", {"method": "twn"}], ids=str)
@pytest.mark.parametrize("kind", [TernaryLinear, TernaryConv2d])
def test_config_of_another_class_is_refused(kind: type[nn.Module], config: object) -> None:
    with pytest.raises(TypeError, match=r"config must be a TernaryQuantConfig, got .*twn.*TernaryQuantConfig\(method"):
        kind(*(8, 6, 3)[: 3 if kind is TernaryConv2d else 2], config=config)


@pytest.mark.parametrize(
    ("convert", "module", "message"),
    [
        (TernaryLinear.from_linear, nn.Conv2d(4, 4, 3), "linear must be a torch.nn.Linear, got Conv2d"),
        (TernaryLinear.from_linear, TernaryLinearInference(8, 6), "got TernaryLinearInference"),
        (TernaryConv2d.from_conv2d, nn.Linear(4, 4), "conv must be a torch.nn.Conv2d, got Linear"),
        (TernaryConv2d.from_conv2d, nn.Conv1d(4, 4, 3), "got Conv1d"),
        (TernaryLinear.from_linear, nn.Linear(4, 4, dtype=torch.complex64), "got torch.complex64"),
    ],
)
def test_modules_that_are_not_the_dense_layer_are_refused(
    convert: Callable[[nn.Module], nn.Module], module: nn.Module, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        convert(module)


# FIELD N16
@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda **k: TernaryLinear(8, 6, **k), "Linear"), (lambda **k: TernaryConv2d(4, 6, 3, **k), "Conv2d")],
)
def test_field_of_the_configuration_as_argument_names_config(make: Callable[..., nn.Module], name: str) -> None:
    message = (
        rf"Ternary{name} takes method='lsq', granularity='tensor' .* config=TernaryQuantConfig\(method='lsq', gran"
    )
    with pytest.raises(TypeError, match=message):
        make(method="lsq", granularity="tensor")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        make(colour="red")
