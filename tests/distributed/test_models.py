"""Whole models in two gloo processes against one process; `model_worker.py` has the checks."""

from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

pytest.importorskip("transformers")

from tests import two_processes
from tests.distributed import model_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote."""
    return two_processes.start(model_worker.__name__, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", model_worker.CHECKS)
def test_two_processes(name: str, folder: Path) -> None:
    two_processes.assert_passed(name, folder)
