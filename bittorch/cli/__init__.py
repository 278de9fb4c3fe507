"""The `bittorch` command; docs/reference/command_line.md lists what it does."""

from bittorch.cli.program import main

__all__ = ["main"]
