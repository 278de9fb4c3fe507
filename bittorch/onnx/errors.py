"""What other packages' errors say."""

from __future__ import annotations


def innermost(error: BaseException) -> BaseException:
    """The error that the others were raised from; those around it repeat parts of the model."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
