"""What the tests' own helpers promise."""

import inspect
import itertools

import pytest
import torch

from tests import helpers


def test_each_case_runs_and_a_failure_names_its_values() -> None:
    seen = []

    @helpers.each("a", [1, 2])
    @helpers.each("b, c", [(3, 4), (5, 6)], ids=["first", "second"])
    def case(fixture: str, a: int, b: int, c: int) -> None:
        seen.append((fixture, a, b, c, torch.initial_seed()))
        torch.manual_seed(7)
        if (a, b) == (2, 5):
            pytest.fail("of pytest")

    assert list(inspect.signature(case).parameters) == ["fixture"]
    with pytest.raises(AssertionError, match=r"^a = 2: b, c = second: of pytest$"):
        case(fixture="x")
    assert seen == [("x", a, b, c, 0) for a in (1, 2) for b, c in ((3, 4), (5, 6))]
    with pytest.raises(AssertionError, match="does not take"):
        helpers.each("other", [1])(lambda a: None)
    with pytest.raises(pytest.skip.Exception, match="no cases"):
        helpers.each("a", [])(lambda a: None)()


def test_pairs_meet_in_each_way() -> None:
    cases = helpers.pairs("abcd")
    assert len(cases) == 8
    for one, other in itertools.combinations(range(3), 2):
        met = {(case[one], case[other]) for case in cases}
        assert len(met) == len({case[one] for case in cases}) * 2
