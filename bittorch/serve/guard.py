"""Who may ask."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from bittorch.serve.errors import AUTHENTICATION, ApiError
from bittorch.serve.options import Options

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Checks a request's headers.

    A key is compared in a time that does not depend on it. Pages of other addresses, whose requests a browser sends
    with an ``Origin``, need to be named in the options; and a server for this machine alone answers to its own names
    alone, since a page may have a name of its own lead here.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._key = None if options.api_key is None else options.api_key.encode()

    def check(self, headers: Headers, open_to_all: bool) -> None:
        """Raises ApiError; ``open_to_all`` asks for no key."""
        host = headers.get("host", "")
        if self.options.local and _name(f"//{host}") not in (*LOCAL_NAMES, self.options.host):
            raise ApiError("this server answers to names of this machine alone", status=403, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self.options.origins and _place(origin) != host:
            raise ApiError("pages of other addresses may not ask this server", status=403, code="wrong_origin")
        if self._key is None or open_to_all:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
            raise ApiError("the API key is missing or wrong", status=401, code="invalid_api_key", kind=AUTHENTICATION)


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _place(origin: str) -> str | None:
    """Host and port of an origin, as the header ``host`` has them."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
