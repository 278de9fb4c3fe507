"""The process around the routes: its socket, its signals, and connections that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bittorch.serve.app import Routes
from bittorch.serve.options import Options
from bittorch.serve.service import Service

BACKLOG = 2048


class Connection(H11Protocol):
    """A connection that is ended where its client sends no whole head, or takes nothing, for too long."""

    head_seconds = 20.0
    write_seconds = 60.0
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Waits on, or no longer."""
        super().data_received(data)
        self._await_head()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._write = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._write = _ended(self._write)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._head, self._write = _ended(self._head), _ended(self._write)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._head = _ended(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self.transport.abort)


def _ended(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None in place of a timer, which is stopped."""
    if timer is not None:
        timer.cancel()
    return None


class Server(uvicorn.Server):
    """Ends by SIGTERM and Ctrl-C once the answers under way are given, and by a second Ctrl-C at once.

    Args:
        service: what it serves.
        connection: the class of its connections.
    """

    def __init__(self, service: Service, connection: type[Connection] = Connection) -> None:
        config = uvicorn.Config(
            Routes(service).app(),
            http=connection,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=service.options.drain_seconds,  # type: ignore[arg-type]
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals that end a server, and ends the process by none of them; only a main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(options: Options) -> socket.socket:
    """The socket of the options. Raises OSError."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    return socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)


def run(service: Service, listening: Callable[[str], None]) -> None:
    """Serves until the process is asked to end.

    Args:
        service: what is served.
        listening: is told the address before the first request is answered.

    Raises:
        OSError: the address is taken, or no address of this machine.
    """
    options = service.options
    with listen(options) as own:
        host = f"[{options.host}]" if ":" in options.host else options.host
        listening(f"http://{host}:{own.getsockname()[1]}")
        try:
            asyncio.run(Server(service).serve([own]))
        finally:
            service.scheduler.stop()
