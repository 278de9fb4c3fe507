"""The program: its commands, its exit codes, and what becomes of errors."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from bittorch._version import __version__
from bittorch.cli import (
    batch,
    bench,
    build_shim,
    cache,
    chat,
    completion,
    convert,
    evaluate,
    info,
    run,
    self_test,
    serve,
)
from bittorch.cli.arguments import as_options
from bittorch.cli.console import Console
from bittorch.cli.errors import BROKEN_PIPE, FAILURE, INTERRUPTED, USAGE, UsageError, one_line

COMMANDS = (chat, run, batch, serve, convert, info, bench, evaluate, cache, completion, build_shim, self_test)
EPILOG = """exit codes: 0 done; 1 failed, with one line on stderr; 2 wrong usage; 130 interrupted; 141 the reader of the
output went away"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are kept, for JSON."""

    message = ""

    def error(self, message: str) -> NoReturn:
        _Parser.message = message
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    parser = _Parser(
        prog="bittorch",
        description="Ternary language models: talk to them, convert them, measure them.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bittorch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    parser.set_defaults(program=parser)  # what `completion` describes
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 the reader of stdout went away.
    """
    _open_missing_streams()
    _tolerate_any_text()
    try:
        code = _main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:  # of the last flush: a full disk
        _drop_output()
        Console().error(one_line(error))
        return FAILURE


def _main(argv: Sequence[str] | None) -> int:
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed what it had to say
        code = end.code if isinstance(end.code, int) else FAILURE
        if code and "--json" in (sys.argv[1:] if argv is None else argv):
            Console(json=True).failure(_Parser.message, code)
        return code
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    console = Console(json=args.json, quiet=args.quiet, plain=args.plain)
    with _warnings_as_notes(console):
        return _run(args, console)


def _run(args: argparse.Namespace, console: Console) -> int:
    try:
        code = int(args.execute(args, console))
        console.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as error:
        console.error("interrupted")
        if type(error) is KeyboardInterrupt:  # others have said what there was
            console.failure("interrupted", INTERRUPTED)
        return INTERRUPTED
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if args.debug:
            traceback.print_exc(file=console.stderr)
        code = USAGE if isinstance(error, UsageError) else FAILURE
        text = as_options(one_line(error))
        console.error(text)
        console.failure(text, code)
        return code


@contextlib.contextmanager
def _warnings_as_notes(console: Console) -> Iterator[None]:
    """Warnings as one line each, without the source that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: console.note(
            f"warning: {as_options(' '.join(str(message).split()))}"
        )
        yield


def _open_missing_streams() -> None:
    """What the parent process closed, as for a daemon, is empty or leads nowhere; Python has None in its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, open as long as the process


def _tolerate_any_text() -> None:
    """An answer must not end the program because the terminal's encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Sends what is still buffered nowhere, so that the interpreter does not fail to flush it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
