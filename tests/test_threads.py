"""The products run on torch's threads: at::parallel_for is silently serial in a shim that is compiled without -fopenmp."""

import sys
from pathlib import Path

import pytest
import torch

from bittorch import ops

TASKS = Path("/proc/self/task")


def ticks_by_thread() -> dict[str, int]:
    """CPU time of each thread of this process, in clock ticks."""
    ticks = {}
    for task in TASKS.iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])
    return ticks


@pytest.mark.skipif(sys.platform != "linux", reason="reads thread times from /proc")
@pytest.mark.parametrize("op", [ops.ternary_linear_packed, ops.ternary_linear_w2a8])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_use_as_many_threads_as_torch(op, threads: int) -> None:
    w_packed, scale = ops.ternary_quantize(torch.randn(1024, 2048), "max", "ls", 0.05, "channel")
    x = torch.randn(64, 2048)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        op(x, w_packed, scale)
        start = ticks_by_thread()
        for _ in range(400):
            op(x, w_packed, scale)
            # A worker of an earlier parallel region may still spin for a few ticks.
            busy = [name for name, ticks in ticks_by_thread().items() if ticks > start.get(name, 0) + 5]
            if len(busy) >= 2:
                break
    finally:
        torch.set_num_threads(before)
    assert (len(busy) >= 2) == (threads == 2)
