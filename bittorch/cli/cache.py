"""`bittorch cache`: what converted models take, and their removal."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from bittorch._env import cache_directory
from bittorch.cli import default_model
from bittorch.cli.arguments import output_options
from bittorch.cli.console import Console, size_text
from bittorch.cli.errors import OK


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cache",
        help="list the converted models that are kept, or remove them",
        description="Lists the models that commands converted and kept: their sizes, and when they were made. They are "
        "made again when they are needed.",
        parents=[output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    entries = default_model.entries()
    total = sum(entry.bytes for entry in entries)
    if args.clear:
        for entry in entries:
            default_model.remove(entry.path)
    made = {entry.path: datetime.datetime.fromtimestamp(entry.made).isoformat(" ", "minutes") for entry in entries}
    console.object(
        {
            "directory": str(cache_directory()),
            "bytes": total,
            "removed": args.clear,
            "entries": [
                {"path": str(entry.path), "bytes": entry.bytes, "made": made[entry.path], "whole": entry.whole}
                for entry in entries
            ],
        }
    )
    if args.clear:
        console.line(f"{len(entries)} models removed, {size_text(total)}, from {cache_directory()}")
        return OK
    rows = [(e.path.name, size_text(e.bytes), made[e.path], "" if e.whole else "unfinished") for e in entries]
    if rows:
        console.table(("model", "size", "made", ""), rows)
    console.line(f"{len(entries)} models, {size_text(total)}, in {cache_directory()}")
    return OK
