"""Runs a command as on a bare machine: without the tools that the tests can do without.

    python3 tests/without_tools.py make test

PATH becomes one folder of links to all programs but the hidden ones; headers of SIMDe are found first in a folder where
each is an error; CUDA_HOME, where it is set the only toolkit, is an empty folder. So a build that needs one of them
fails, as it would where none is installed. A chroot would hide them too, but it needs privileges and a network.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "without_tools"
# Patterns of programs' names.
HIDDEN = (
    "clang*", "ccache", "nvcc", "nvdisasm", "cuobjdump", "ptxas", "compute-sanitizer", "qemu-*", "aarch64-linux-gnu-*",
)  # fmt: skip
HEADERS = ("simde/x86/avx512.h", "simde/x86/f16c.h", "simde/x86/avx2.h", "simde/arm/neon.h")


def _link_programs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for place in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if not os.path.isdir(place):
            continue
        for program in os.scandir(place):
            hidden = any(fnmatch.fnmatch(program.name, pattern) for pattern in HIDDEN)
            if not hidden and not (folder / program.name).is_symlink() and os.access(program.path, os.X_OK):
                (folder / program.name).symlink_to(os.path.abspath(program.path))


def environment(folder: Path = FOLDER) -> dict[str, str]:
    """Makes the folder anew; the variables that hide the tools, with those of this process."""
    shutil.rmtree(folder, ignore_errors=True)
    _link_programs(folder / "bin")
    for name in HEADERS:
        header = folder / "include" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(f'#error "{name} is hidden, as on a machine without it"\n')
    (folder / "cuda").mkdir()
    hiding = {"PATH": folder / "bin", "CPATH": folder / "include", "CUDA_HOME": folder / "cuda"}
    kept = {name: value for name, value in os.environ.items() if name not in ("BITTORCH_CI", "NVCC")}
    return {**kept, **{name: str(path) for name, path in hiding.items()}}


def main(command: Sequence[str]) -> int:
    hiding = environment()
    program = shutil.which(command[0], path=hiding["PATH"]) if command else None
    if program is None:
        print(f"usage: {sys.argv[0]} COMMAND ARGUMENTS...; got {list(command)}", file=sys.stderr)
        return 2
    return subprocess.run([program, *command[1:]], env=hiding).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
