"""The products run on torch's threads; at::parallel_for is silently serial in a shim compiled without -fopenmp."""

import sys

import pytest

from tests import helpers

# In a process of its own, where no thread of another test is busy. Prints how many threads worked.
CODE = """
from pathlib import Path
import torch
from bittorch import ops

torch.set_num_threads({threads})

def ticks_by_thread():
    ticks = {{}}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])
    return ticks

w_packed, scale = ops.ternary_quantize(torch.randn(1024, 2048), "max", "ls", 0.05, "channel")
x = torch.randn(64, 2048)
start = ticks_by_thread()
for _ in range(400):
    ops.{op}(x, w_packed, scale)
    busy = [name for name, ticks in ticks_by_thread().items() if ticks > start.get(name, 0) + 5]
    if len(busy) >= 2:
        break
print(len(busy))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads thread times from /proc")
@pytest.mark.parametrize(
    ("op", "threads"),
    helpers.slow_but(
        [("ternary_linear_w2a8", 2)],
        [(op, threads) for threads in (1, 2) for op in ("ternary_linear_packed", "ternary_linear_w2a8")],
    ),
)
def test_products_use_as_many_threads_as_torch(op: str, threads: int) -> None:
    result = helpers.run_python(CODE.format(op=op, threads=threads))
    assert result.returncode == 0, result.stderr
    assert (int(result.stdout) >= 2) == (threads == 2)
