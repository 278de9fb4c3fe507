"""What the tests of the package share: a copy of the checkout, and how commands run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bittorch import _build_info

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "*.so", "_build_info.py")
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
ALONE = ("--no-index", "--no-deps", "--no-build-isolation")
INSTALL = ("install", "--ignore-installed", *ALONE)


def attempt(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command without the checkout on the path, and without bittorch's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BITTORCH_", "PYTHONPATH", "PYTEST_"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command printed, as `attempt` runs it; it must succeed."""
    done = attempt(*command, cwd=cwd, **variables)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def same_build() -> dict[str, str]:
    """The variables that make the build like the one that runs: with CUDA kernels or without them."""
    arches = _build_info.CUDA_ARCHES
    return {"BITTORCH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arches} if arches else {"BITTORCH_CUDA": "0"}


def take_objects(tree: Path) -> None:
    """Objects of this checkout's last build for a tree with the same sources; setup.py looks whether they fit."""
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", tree / "build" / "objects", dirs_exist_ok=True)


def checkout(folder: Path) -> Path:
    for name in ("bittorch", "csrc", "tests", "benchmark", "examples", "docs", "packaging"):
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    return folder
