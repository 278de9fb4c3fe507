"""`bittorch build-shim`: the part of the extension that depends on torch, built for the torch that is installed."""

from __future__ import annotations

import argparse
from typing import Any

from bittorch import _build_shim
from bittorch.cli.arguments import output_options
from bittorch.cli.console import Console
from bittorch.cli.errors import OK


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("build-shim", help=_build_shim.SUMMARY, parents=[output_options()], allow_abbrev=False)
    _build_shim.add_arguments(parser)
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    line = _build_shim.build(args.sources)
    console.object({"built": line})
    console.line(line)
    return OK
