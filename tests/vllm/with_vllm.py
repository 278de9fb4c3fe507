"""Packed models in the real vLLM on a CPU: greedy tokens are those of bittorch's own engine. `make test-vllm` runs it.

Prompts and layers are so small, and weights so large, that no two tokens are nearly as likely: float32 sums that vLLM
adds in another order change no token.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from vllm.model_executor.kernels.linear import MPLinearLayerConfig
from vllm.scalar_type import scalar_types

import bittorch
from bittorch.vllm import row_parallel
from bittorch.vllm.compressed import TernaryLinearKernel
from bittorch.vllm.config import BittorchConfig
from tests.vllm import models

ROOT = Path(bittorch.__file__).parent.parent


def served(processes: int, *folders: Path) -> list[object]:
    """vLLM's tokens of each folder, or its error."""
    command = [sys.executable, "-m", "tests.vllm.tokens", str(processes), *map(str, folders)]
    # A session of its own: vLLM ends its workers by signals to the group of processes.
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, start_new_session=True)
    lines = [line.removeprefix("TOKENS ") for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert len(lines) == len(folders), done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Floating activations; int8 ones with biases and two planes; groups; BitNet."""
    root = tmp_path_factory.mktemp("models")
    return [
        models.folder(root, "floating", models.llama, None),
        models.folder(root, "planes", models.qwen2, 8, depth=2),
        models.folder(root, "groups", models.llama, 8, group_size=64),
        models.folder(root, "bitnet", models.bitnet, 8),
    ]


def test_tokens_of_one_process(folders: list[Path]) -> None:
    made = [*folders, models.compressed(folders[0])]
    assert served(1, *made) == [models.tokens(folder) for folder in made]


def test_tokens_of_two_processes(folders: list[Path]) -> None:
    assert served(2, *folders) == [models.tokens(folder) for folder in folders]


def test_a_damaged_file_is_named(folders: list[Path], tmp_path: Path) -> None:
    for source in folders[0].iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, _ = header["model.layers.1.mlp.up_proj.weight_packed"]["data_offsets"]
    data[8 + int.from_bytes(data[:8], "little") + begin] = 0xFF
    (tmp_path / "model.safetensors").write_bytes(data)
    (error,) = served(1, tmp_path)
    assert "model.layers.1.mlp.gate_up_proj.weight_packed holds the reserved code 11 at row 512, column 0" in str(error)


def test_the_kernel_says_what_it_does_not_take() -> None:
    def answer(columns: int, group: int, kind: object = scalar_types.uint2b2) -> tuple[bool, str | None]:
        form = MPLinearLayerConfig((256, 64), (columns, 64), kind, torch.float32, group, False)
        return TernaryLinearKernel.can_implement(form)

    assert answer(256, -1) == answer(128, 64) == (True, None)
    assert (
        answer(256, -1, scalar_types.uint4b8)[1] == "ternary weights are symmetric with 2 bits (uint2b2), got uint4b8"
    )
    assert answer(128, 96)[1] == "groups of 96 must be a multiple of 4 and divide 128 columns per process"
    assert answer(8, -1)[1] == "8 of 256 columns per process are no whole words of 16 codes"


def _share(rank: int, file: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    row_parallel.get_tp_group = lambda: type("Group", (), {"device_group": dist.group.WORLD})
    layer, x = torch.load(f"{folder}/layer.pt", weights_only=False)
    share = bittorch.nn.TernaryLinearInference(128, 64, activation_bits=8, device="meta")
    share.weight_packed = layer.weight_packed[:, 32 * rank : 32 * rank + 32].contiguous()
    share.scale, share.bias = layer.scale, layer.bias
    torch.save(row_parallel.row_parallel(x[:, 128 * rank : 128 * rank + 128], share), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_shares_have_the_bits_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = bittorch.TernaryQuantConfig(activation_bits=8)
    layer = bittorch.export_linear_to_inference(bittorch.TernaryLinear(256, 64, config=config).eval())
    x = torch.randn(5, 256).to(torch.bfloat16)
    x[:, 200] *= 50
    torch.save((layer, x), tmp_path / "layer.pt")
    torch.multiprocessing.spawn(_share, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    with torch.no_grad():
        whole = layer(x)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), whole)


def test_the_configuration_reads_the_folder(folders: list[Path]) -> None:
    config = BittorchConfig.from_config({"quant_method": "bittorch"})
    config.maybe_update_config(str(folders[1]))
    assert config.forms["model.layers.0.mlp.down_proj"].depth == 2
    assert config.get_quant_method(torch.nn.Linear(4, 4), "lm_head") is None
