"""Servers in this process, on a port of their own. Importing this skips a test where the extra is missing."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from bittorch.models import LanguageModel

for module in ("starlette", "uvicorn", "prometheus_client", "openai", "tokenizers", "jinja2"):
    pytest.importorskip(module, reason="the server needs bittorch[serve], its tests openai")

import openai  # noqa: E402

from bittorch.serve.options import Options  # noqa: E402
from bittorch.serve.server import Connection, Server, listen  # noqa: E402
from bittorch.serve.service import Service  # noqa: E402

# Prompts of more than one chunk; slots for a few answers. Its context is the tiny model's.
OPTIONS = Options("tiny", port=0, slots=4, queue=8, context=256, chunk=16, step_tokens=32, sampling={"temperature": 0})


class Answer(NamedTuple):
    """What came over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclasses.dataclass
class Running:
    """A server that runs."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.service.options.api_key or "none", max_retries=0)

    def ask(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> Answer:
        """One request by hand; what is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, names)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Fails where it does not come true."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def serving(model: LanguageModel, options: Options, connection: type[Connection] = Connection) -> Iterator[Running]:
    """Serves in a thread; at the end nothing is left of it."""
    service = Service(model, options)
    server = Server(service, connection)
    own = listen(options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([own])), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(service, own.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        assert not service.alive
        assert service.taken == 0
