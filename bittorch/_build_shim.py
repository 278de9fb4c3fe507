"""`python -m bittorch build-shim`: the shim for the torch that runs, made beside the kernels that are here.

It needs neither the shim nor torch to be loaded, because it is for an installation that cannot be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bittorch import _extension
from bittorch._version import __version__

PROGRAM = "bittorch build-shim"
STDERR = 2  # where the progress goes: sys.stderr may be no file
SUMMARY = "build the part of the extension that depends on torch, for the torch that is installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="?", type=Path, help="the folder of the unpacked source distribution; by default the checkout"
    )


def _sources(given: Path | None) -> Path:
    folder = given or _extension.FOLDER.parent
    if (folder / "setup.py").is_file() and (folder / "csrc" / "dispatch").is_dir():
        return folder.resolve()
    where = "this installation has no sources" if given is None else f"{folder} has no setup.py and csrc/dispatch"
    raise FileNotFoundError(
        f"{where}; unpack the source distribution of bittorch {__version__} and name its folder: "
        "python -m bittorch build-shim FOLDER"
    )


def build(given: Path | None) -> str:
    """Makes the shim in the folder of the package.

    Args:
        given: the sources; by default those of the checkout that the package is in.

    Returns:
        A line that names the torch versions that there are shims of.

    Raises:
        OSError: there are no kernels or sources, or the folder cannot be written to.
        RuntimeError: the build failed; the message is the last line that it printed.
    """
    folder = _extension.FOLDER
    if not (folder / _extension.LIBRARY).exists():
        raise FileNotFoundError(
            f"there are no kernels in {folder}; run: pip install --no-build-isolation . (or make build)"
        )
    sources = _sources(given)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{folder} cannot be written to; run this as the user who installed bittorch, or install it in a virtual "
            "environment: python -m venv"
        )
    command = [sys.executable, "setup.py", "--quiet", "build_shim", "--package", str(folder)]
    done = subprocess.run(command, cwd=sources, stdout=STDERR, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return f"{folder} is {_extension.describe_shims()}"


def main(arguments: list[str]) -> int:
    """The command where the package does not load; returns the exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=SUMMARY, allow_abbrev=False)
    add_arguments(parser)
    try:
        print(build(parser.parse_args(arguments).sources))
    except (OSError, RuntimeError) as error:
        print(f"bittorch: error: {error}", file=sys.stderr)
        return 1
    return 0
