"""The `bittorch` command: chat, run, batch, convert, info, bench, eval, doctor. See docs/command_line.md."""

from bittorch.cli.program import main

__all__ = ["main"]
