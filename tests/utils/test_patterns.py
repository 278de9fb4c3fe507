import pytest
from torch import nn

from bittorch import TernaryLinear, quantize_
from bittorch.utils.patterns import first_match, matches


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.mlp.*", ["mlp.up", "a.mlp.up", "a.mlp.b.up"]),
        ("mlp.*", ["mlp.up"]),
        ("*mlp.*", ["mlp.up", "a.mlp.up", "a.mlp.b.up", "a.xmlp.up"]),
        ("*.up", ["mlp.up", "a.mlp.up", "a.mlp.b.up", "a.xmlp.up", "up"]),
        ("up", ["up"]),
        ("?p", ["up"]),
        ("*", ["mlp.up", "a.mlp.up", "a.mlp.b.up", "a.xmlp.up", "up", ""]),
    ],
)
def test_names_that_a_pattern_takes(pattern: str, names: list[str]) -> None:  # FIELD N16
    every = ["mlp.up", "a.mlp.up", "a.mlp.b.up", "a.xmlp.up", "up", ""]
    assert [name for name in every if matches(name, pattern)] == names


def test_first_match_counts() -> None:
    assert first_match("mlp.up", {"x": 1, "*.up": 2, "*": 3}) == 2
    assert first_match("mlp.up", {"x": 1}) is None


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)})
        self.lm_head = nn.Linear(4, 4)


def test_pattern_takes_modules_at_the_top_too() -> None:  # FIELD N16
    model = _Model()
    quantize_(model, filter_fn="*.mlp.*")
    assert isinstance(model.mlp["up"], TernaryLinear)
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mlp", r"skip 'mlp' matches no layer .*; 'mlp' is a module around layers, 'mlp\.\*' takes what is in it"),
        ("up", r"skip 'up' matches no layer .*; '\*\.up' takes layers of that name anywhere"),
        ("lm_haed", r"skip 'lm_haed' matches no layer .*; there is lm_head"),
    ],
)
def test_warning_says_what_was_meant(pattern: str, message: str) -> None:  # FIELD N16
    with pytest.warns(UserWarning, match=message) as caught:
        quantize_(_Model(), skip=pattern)
    assert caught[0].filename == __file__
