"""Loading takes little more memory than the file has bytes, whatever the format, and so does converting."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import PackedWeight, from_memory, save
from tests.helpers import pack, random_codes
from tests.models.io.tiny import BITNET

CONFIG = dataclasses.replace(BITNET, vocab_size=20000, hidden_size=1024, intermediate_size=4096, num_layers=20)

MEASURE = """
import sys
from pathlib import Path
from bittorch.models.io import convert, open_checkpoint

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

path = Path(sys.argv[1])
with open_checkpoint(path) as checkpoint:  # so that code and its first buffers are in memory
    checkpoint.packed("model.layers.0.mlp.up_proj.weight"), checkpoint.dense("model.norm.weight", copy=True)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins here
if len(sys.argv) == 2:
    with open_checkpoint(path) as checkpoint:
        kept = []
        for name in checkpoint.names:
            if checkpoint.info(name).ternary:
                kept.append(checkpoint.packed(name))
            else:
                kept.append(checkpoint.dense(name, copy=True))
else:
    convert(path, sys.argv[2], to=sys.argv[3])
file = path if path.is_file() else path / "model.safetensors"
print((status("VmHWM") - before) / file.stat().st_size)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100 MB; all layers have one layer's weights."""
    made: dict[tuple[int, ...], PackedWeight] = {}
    tensors = {}
    for name, shape in tensor_shapes(CONFIG).items():
        if name.endswith("_proj.weight"):
            if shape not in made:
                made[shape] = PackedWeight(pack(random_codes(*shape)), torch.tensor([0.5]), shape[1])
            tensors[name] = made[shape]
        else:
            tensors[name] = torch.rand(shape).bfloat16()  # no trits, which would be packed when they are opened
    path = tmp_path_factory.mktemp("memory")
    for to in ("bittorch", "bitnet", "gguf-tq2_0"):
        save(from_memory(CONFIG, tensors, {}), path / to, to=to)
    return path


def measured(*arguments: str | Path) -> float:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak is read from /proc, which this system lacks")
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["bittorch", "bitnet", "gguf-tq2_0"])
def test_loading_peaks_at_the_size_of_the_file(to: str, folder: Path) -> None:
    peak = measured(folder / to)
    assert 0.8 < peak < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("to", ["bittorch", "gguf-tq2_0"])
def test_converting_holds_a_tensor_at_a_time(to: str, folder: Path, tmp_path: Path) -> None:
    """The embedding is 40 % of the file, and the source's and the written one are compared."""
    assert measured(folder / "bitnet", tmp_path / "out", to) < 1.5
