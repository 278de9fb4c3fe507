"""A tiny model, and a server of it that runs for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bittorch.models import LanguageModel
from tests.cli import tiny_model

if TYPE_CHECKING:
    from tests.serve.servers import Running


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model."""
    return tiny_model.make(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="session")
def model(directory: Path) -> LanguageModel:
    """Its layers and its head in planes, so that no product depends on the batch."""
    return LanguageModel.from_pretrained(directory, depth=2, group_size=0, head_depth=4)


@pytest.fixture(scope="session")
def server(model: LanguageModel) -> Iterator[Running]:
    from tests.serve.servers import OPTIONS, serving

    with serving(model, OPTIONS) as running:
        yield running
