from collections.abc import Callable, Iterator

import pytest
from torch import nn

from bittorch import TernaryLinear, TernaryQuantConfig, quantize_, quantize_model


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("convert", [quantize_, quantize_model])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "twn"}, r"config must be a TernaryQuantConfig, or .*, got 'twn'; a method alone is"),
        ({"config": {"0": "twn"}}, "config must be a TernaryQuantConfig, or .*, got 'twn'"),
        ({"config": {0: TernaryQuantConfig()}}, "config must hold name patterns, which are strings, got 0"),
        ({"filter_fn": [0]}, "filter_fn must hold name patterns, which are strings, got 0"),
        ({"filter_fn": 0}, "filter_fn must be a name pattern or several, .*, got 0"),
        ({"filter_fn": nn.Linear}, "got class Linear; lambda module, name: isinstance"),
        ({"skip": None}, "skip must be a name pattern or several, .*, got None"),
        ({"skip": nn.Linear}, "skip must be a name pattern or several, .*, got <class"),
    ],
    ids=str,
)
def test_arguments_of_other_kinds_are_refused(
    convert: Callable[..., object], arguments: dict[str, object], message: str
) -> None:
    model = _model()
    with pytest.raises(TypeError, match=message):
        convert(model, **arguments)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("convert", [quantize_, quantize_model])
def test_what_is_no_module_is_refused(convert: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        convert([nn.Linear(4, 4)])


def test_patterns_may_come_from_an_iterator() -> None:
    def names() -> Iterator[str]:
        yield "2"

    model = _model()
    quantize_(model, filter_fn=names())
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, TernaryLinear]
