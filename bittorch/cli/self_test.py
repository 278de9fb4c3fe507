"""`bittorch doctor`: what this installation runs on, and whether its kernels compute what they should."""

from __future__ import annotations

import argparse
from typing import Any

from bittorch import doctor
from bittorch._version import __version__
from bittorch.cli.arguments import output_options
from bittorch.cli.console import Console
from bittorch.cli.errors import FAILURE, OK


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="print what this installation runs on, and test it; exit code 1 if it fails",
        parents=[output_options()],
        allow_abbrev=False,
    )
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    if not console.json:
        return doctor.run()
    checks = [{"device": device, "check": name, "problem": problem} for device, name, problem in doctor.self_test()]
    well = not any(check["problem"] for check in checks)
    console.object({"version": __version__, "ok": well, "checks": checks, "description": doctor.description()})
    return OK if well else FAILURE
