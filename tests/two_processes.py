"""Two gloo processes that are started once and run checks together; each check is a test of who started them.

Each check runs in both processes. They stop at the first that fails, since its collectives no longer match.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist


def start(module: str, folder: Path) -> Path:
    """Runs a module, which calls `run`, twice; the folder is where both write their results."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), f"file://{folder}/rendezvous", str(folder)],
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


def assert_passed(name: str, folder: Path) -> None:
    for rank in range(2):
        results = json.loads((folder / f"{rank}.json").read_text())
        assert results.get(name, "not reached: a check before it failed") == "passed"


def run(checks: Mapping[str, Callable[[], None]]) -> None:
    """What each process does, as its arguments say: RANK, a rendezvous, a folder for results."""
    rank, init, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    results = {}
    try:
        for name, check in checks.items():
            check()
            gc.collect()
            results[name] = "passed"
    except BaseException:
        results[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(results))
    # Wrapped models hold the group: gloo's threads are joined only once they are gone. One that still lives while the
    # interpreter ends takes the process down when it asks for the GIL ("terminate called without an active exception").
    gc.collect()
    dist.destroy_process_group()
