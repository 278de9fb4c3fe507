"""Why a request is refused or failed, in the shape that OpenAI's clients know."""

from __future__ import annotations

import logging
import traceback
from typing import Any

INVALID, AUTHENTICATION, OVERLOADED, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)


class ApiError(Exception):
    """An answer that is an error.

    Args:
        message: for the person who wrote the request; never text of a prompt.
        status: of HTTP.
        param: the field at fault.
        code: for programs.
        kind: what clients read as ``type``.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.kind, self.retry_after = kind, retry_after

    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(message: str) -> ApiError:
    """There is no place now."""
    return ApiError(message, status=429, code="rate_limit_exceeded", kind=OVERLOADED, retry_after=1)


def failed(message: str, status: int = 500, code: str | None = None) -> ApiError:
    """The server's fault, or its limit."""
    return ApiError(message, status=status, code=code, kind=SERVER)


def ending() -> ApiError:
    """The server ends, and has no more time for this answer."""
    return failed("the server ends before the answer does", 503, "shutdown")


def log(error: BaseException) -> None:
    """Writes what failed and where, without the error's text, which may hold a prompt's."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    logging.getLogger("bittorch.serve").error("%s in %s", type(error).__name__, places)
