"""Tensor parallelism of two gloo processes against one process; `parallel_worker.py` has the checks."""

from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

from tests import two_processes
from tests.distributed import parallel_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote."""
    return two_processes.start(parallel_worker.__name__, tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("name", parallel_worker.CHECKS)
def test_two_processes(name: str, folder: Path) -> None:
    two_processes.assert_passed(name, folder)
