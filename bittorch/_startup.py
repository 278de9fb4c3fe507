"""What the `bittorch` program says where the package does not load: one line, and what `doctor`, `--version` can tell.

The program is part of the package, so a package that cannot be imported would answer every command with a traceback.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from bittorch import _build_shim, _extension
from bittorch._version import __version__


def is_program() -> bool:
    """Whether `python -m bittorch` or the installed `bittorch` imports the package."""
    if sys.argv[:1] != ["-m"]:  # what runpy has there until it has found the module
        return bool(sys.argv) and Path(sys.argv[0]).name == "bittorch"
    for argument, following in zip(sys.orig_argv[1:], [*sys.orig_argv[2:], ""], strict=True):
        if found := re.fullmatch(r"-[bBdEiIOPqRsSuvx]*m(.*)", argument):
            return (found[1] or following) == "bittorch"
    return False


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def description() -> list[str]:
    """What can be said of this installation without loading torch or the extension."""
    return [
        f"bittorch   {__version__}, {_extension.describe_shims()}, in {Path(__file__).parent}",
        f"torch      {_installed('torch')}",
        f"python     {platform.python_version()}, {sys.executable}",
    ]


def _diagnose(problem: str, as_json: bool) -> None:
    """What `doctor` prints, in the form of the other reports."""
    if as_json:
        checks = [{"device": "cpu", "check": "import", "problem": problem}]
        print(json.dumps({"version": __version__, "ok": False, "checks": checks, "description": description()}))
        return
    print(*description(), f"problem    {problem}", "bittorch does not load, so nothing else was tested", sep="\n")


def end(error: Exception) -> NoReturn:
    """Ends the program in place of the command that it was started for."""
    arguments = sys.argv[1:]
    problem = " ".join(str(error).split()) or type(error).__name__
    if arguments[:1] == ["build-shim"]:
        raise SystemExit(_build_shim.main(arguments[1:]))
    if arguments[:1] == ["--version"]:
        print(f"bittorch {__version__}")
        raise SystemExit(0)
    if "--debug" in arguments:
        traceback.print_exception(error)
    if arguments[:1] == ["doctor"]:
        _diagnose(problem, "--json" in arguments)
    else:
        print(f"bittorch: error: {problem}", file=sys.stderr)
    raise SystemExit(1)
