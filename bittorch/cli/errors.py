"""What ends a command, as an exit code and one line."""

from __future__ import annotations

OK, FAILURE, USAGE = 0, 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells report them

# What bad input, a bad file or the machine brings about; anything else is a fault of the program and says its type.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError, MemoryError)


class CommandError(Exception):
    """A failure that the program found itself; the text is the whole message."""


class UsageError(Exception):
    """Arguments that each are well-formed but make no sense."""


def one_line(error: BaseException) -> str:
    """The error's message, without line breaks."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BlockingIOError):
        name = error.filename if error.filename is not None else ""
        text = f"{name}: {error.strerror}" if name else error.strerror
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if isinstance(error, (*EXPECTED, CommandError, UsageError)) else f"{type(error).__name__}: {text}"
