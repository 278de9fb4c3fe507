"""Fixtures: `variant` runs a test once for every kernel of the module's OP that this machine can run, or of those that
the module lists in VARIANTS."""

from collections.abc import Iterator

import pytest
import torch

from tests import helpers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = getattr(metafunc.module, "OP", None)
    if op and "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", getattr(metafunc.module, "VARIANTS", None) or helpers.variants(op))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def forced(request: pytest.FixtureRequest, variant: str) -> Iterator[str]:
    """Makes ``variant`` the automatic choice of the module's OP: for ops without a variant argument."""
    with helpers.forced(request.module.OP, variant):
        yield variant
