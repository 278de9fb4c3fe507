"""Two gloo processes, started once, run the checks of `distributed_worker.py`; each is a test here."""

from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

import torch.distributed.checkpoint as dcp

from tests import two_processes
from tests.train import distributed_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote."""
    return two_processes.start(distributed_worker.__name__, tmp_path_factory.mktemp("distributed"))


@pytest.mark.parametrize("name", distributed_worker.CHECKS)
def test_two_processes(name: str, folder: Path) -> None:
    two_processes.assert_passed(name, folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["max", "seq", "int8"])
def test_distributed_checkpoint_loads_in_one_process(name: str, folder: Path) -> None:
    model = distributed_worker.model(name)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=folder / name)
    model.load_state_dict(state["model"])
    expected = torch.load(folder / f"{name}.pt", weights_only=True)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
