"""Two gloo processes, started once, run the checks of `distributed_worker.py`; each is a test here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

import torch.distributed.checkpoint as dcp

from tests.train import distributed_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", distributed_worker.__name__]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, str(rank), f"file://{folder}/rendezvous", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=500)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return folder


@pytest.mark.parametrize("name", distributed_worker.CHECKS)
def test_two_processes(name: str, folder: Path) -> None:
    for rank in range(2):
        results = json.loads((folder / f"{rank}.json").read_text())
        assert results.get(name, "not reached: a check before it failed") == "passed"


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
