"""packaging/jetson/install.sh with the files and programs of boards that are not here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.common import ROOT

SCRIPT = ROOT / "packaging" / "jetson" / "install.sh"
pytestmark = pytest.mark.skipif(
    not SCRIPT.exists() or shutil.which("bash") is None, reason="an installed package has no packaging/, or no bash"
)
ORIN, THOR = "NVIDIA Jetson AGX Orin Developer Kit", "NVIDIA Jetson AGX Thor Developer Kit"


class Board:
    """A root with what the script reads, and a python that prints what torch would say and notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "asked"
        self.write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n")
        self.write("proc/device-tree/model", f"{ORIN}\0")
        self.write("proc/meminfo", "MemTotal:        7800000 kB\n")
        self.program("cuda/bin/nvcc", "printf 'compute_80\\ncompute_87\\n'")
        self.torch("2.9.1\t12.6\t")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, code: str) -> None:
        self.write(name, f"#!/bin/sh\n{code}\n").chmod(0o755)

    def torch(self, answer: str) -> None:
        asked = '"$@" "CUDA=$BITTORCH_CUDA" "arches=$TORCH_CUDA_ARCH_LIST" "jobs=$MAX_JOBS"'
        answers = f"printf '%s\\n' '{answer}'" if answer else "exit 1"
        self.program("python", f'[ "$1" = - ] || {{ echo {asked} >> {self.log}; exit; }}\n{answers}')

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": os.environ["PATH"], "ROOT": str(self.folder), "PYTHON": str(self.folder / "python")}
        kept |= {"MACHINE": "aarch64", "CUDA_HOME": str(self.folder / "cuda"), **variables}
        return subprocess.run(["bash", str(SCRIPT), *arguments], env=kept, capture_output=True, text=True)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_an_orin_builds_for_its_device_with_the_compilers_that_fit(board: Board) -> None:
    done = board.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{ORIN}, JetPack 6 (L4T 36)\n" in done.stdout
    jobs = min(2, os.cpu_count() or 1)
    asked = board.log.read_text().splitlines()
    settings = f" CUDA=1 arches=8.7 jobs={jobs}"
    assert asked == [
        "-m pip install setuptools>=77 safetensors" + settings,
        "-m pip install --no-build-isolation --no-deps ." + settings,
        "-m bittorch doctor" + settings,
    ]


def test_a_thor_needs_a_toolkit_that_knows_it(board: Board) -> None:
    board.write("etc/nv_tegra_release", "# R38 (release), REVISION: 2.0\n")
    board.write("proc/device-tree/model", f"{THOR}\0")
    board.write("proc/meminfo", "MemTotal:      128000000 kB\n")
    refused = board.run("--check")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "knows no compute capability 11.0; Thor needs CUDA 13" in refused.stderr
    board.program("cuda/bin/nvcc", "printf 'compute_100\\ncompute_110\\n'")
    done = board.run("--check", MAX_JOBS="5")
    assert done.returncode == 0
    assert "JetPack 7 (L4T 38)" in done.stdout
    assert "for 11.0\n" in done.stdout
    assert "5 at once (128 GB" in done.stdout
    assert not board.log.exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "cannot import torch; install PyTorch for JetPack 6 first"),
        ("2.7.1\t12.6\t", "PyTorch 2.7.1 is installed, and bittorch needs 2.8 or later"),
        ("1.14.0\t12.6\t", "PyTorch 1.14.0 is installed, and bittorch needs 2.8 or later"),
        (
            "2.10.0+cpu\tnone\tnot compiled with CUDA",
            "PyTorch 2.10.0+cpu is built without CUDA; install one for JetPack 6",
        ),
        (
            "2.9.1\t12.8\tno kernel image is available",
            "nothing on the device: no kernel image is available; mend that, or",
        ),
    ],
)
def test_a_torch_that_does_not_serve_is_one_line(board: Board, answer: str, message: str) -> None:
    board.torch(answer)
    done = board.run()
    assert done.returncode == 1
    assert done.stderr.startswith("jetson: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not board.log.exists()


@pytest.mark.parametrize("answer", ["2.10.0+cpu\tnone\tnot compiled with CUDA", "2.9.1\t12.8\tno kernel image"])
def test_c_kernels_alone_are_built_beside_a_torch_without_a_device(board: Board, answer: str) -> None:
    board.torch(answer)
    (board.folder / "cuda/bin/nvcc").unlink()
    done = board.run("--cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "none, C kernels alone\n" in done.stdout
    assert " CUDA=0 arches= jobs=" in board.log.read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("etc/nv_tegra_release", "", "this is no Jetson"),
        ("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1\n", "L4T 35 is neither 36 (JetPack 6) nor 38"),
        ("proc/device-tree/model", None, "unknown board is neither an Orin nor a Thor"),
        ("proc/device-tree/model", "NVIDIA Jetson Nano\0", "NVIDIA Jetson Nano is neither an Orin nor a Thor"),
        ("cuda/bin/nvcc", "", "install the toolkit of JetPack 6 (apt: nvidia-jetpack), or run this with --cpu"),
    ],
)
def test_another_system_is_one_line(board: Board, name: str, text: str | None, message: str) -> None:
    (board.folder / name).unlink()
    if text is not None:
        board.write(name, text)
    done = board.run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not board.log.exists()


def test_another_machine_and_another_argument_are_one_line(board: Board) -> None:
    assert "this machine is x86_64, and a Jetson is aarch64" in board.run(MACHINE="x86_64").stderr
    assert board.run("--gpu").stderr == "jetson: error: unknown argument --gpu; there are --check and --cpu\n"
