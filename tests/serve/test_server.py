"""Connections that take too long, signals, and what stays secret."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import logging
import signal
import socket
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bittorch.models import LanguageModel
from tests.cli.conftest import command

pytest.importorskip("tests.serve.servers")

from bittorch.serve.app import Routes
from bittorch.serve.server import Connection
from tests.serve.servers import OPTIONS, Answer, Running, serving


class Hasty(Connection):
    head_seconds = 0.2
    write_seconds = 0.2


def dribble(server: Running, data: bytes) -> bytes:
    """Sends what there is, then nothing more, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_a_client_that_sends_too_slowly_is_sent_away(model: LanguageModel) -> None:
    options = dataclasses.replace(OPTIONS, body_seconds=0.2)
    with serving(model, options, Hasty) as server:
        for head in (b"", b"GET /health HTTP/1.1\r\nHo", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"):
            with contextlib.suppress(ConnectionResetError):
                assert dribble(server, head) == b""
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
        answer = dribble(server, head)
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"
        assert server.client.completions.create(model="tiny", prompt="a", max_tokens=1).choices


def test_a_client_that_does_not_read_is_sent_away(model: LanguageModel) -> None:
    with serving(model, OPTIONS, Hasty) as server:
        body = json.dumps(
            {
                "model": "tiny",
                "prompt": "a",
                "max_tokens": 250,
                "ignore_eos": True,
                "stream": True,
                "logprobs": 20,
                "n": 4,
            }
        ).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            server.wait_until(lambda: server.service.taken == 4)
            server.wait_until(lambda: server.service.taken == 0 and server.service.scheduler.busy == 0)


def test_nothing_of_a_prompt_is_logged(model: LanguageModel, caplog: Any, capfd: Any, monkeypatch: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"about {args} {kwargs} SECRET")

    with serving(model, OPTIONS) as server, caplog.at_level(logging.DEBUG):
        assert server.ask("/v1/completions", {"model": "tiny", "prompt": "SECRET"}).status == 200
        assert server.ask("/v1/completions", {"model": "tiny", "prompt": "SECRET", "SECRET": 1}).status == 400
        monkeypatch.setattr("bittorch.serve.service.Service.jobs", fail)
        failed = server.ask("/v1/completions", {"model": "tiny", "prompt": "SECRET"})
        assert failed.status == 500
        assert b"SECRET" not in failed.body
    text = caplog.text + "".join(capfd.readouterr())
    assert "RuntimeError in fail" in text
    assert "SECRET" not in text


def test_pages_of_named_addresses_may_ask(model: LanguageModel) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    page = "https://example.org"
    with serving(model, dataclasses.replace(OPTIONS, origins=(page,), api_key="k")) as server:

        def ask(method: str, origin: str, **more: str) -> Answer:
            return server.ask("/v1/completions", body if method == "POST" else None, method, Origin=origin, **more)

        allowed = {name.lower(): value for name, value in ask("POST", page, Authorization="Bearer k").headers.items()}
        assert allowed["access-control-allow-origin"] == page
        assert ask("OPTIONS", page, Access_Control_Request_Method="POST").status == 200
        assert ask("OPTIONS", "http://evil.example", Access_Control_Request_Method="POST").status == 400
        assert ask("POST", page).status == 401
        assert ask("POST", "http://evil.example", Authorization="Bearer k").status == 403
        health = server.ask("/health", method="GET")
        assert health.status == 200
        assert not any(name.lower().startswith("access-control") for name in health.headers)


def test_answers_that_the_end_cuts_off_say_so(model: LanguageModel, caplog: Any) -> None:
    """A stream, an answer in one piece, and a body that is still on its way."""
    options = dataclasses.replace(OPTIONS, slots=1, drain_seconds=0.01)
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 250, "ignore_eos": True, "n": 8}
    with contextlib.ExitStack() as stack:
        with serving(model, options) as server:
            connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(3)]
            for connection in connections:
                stack.enter_context(contextlib.closing(connection))
            connections[2].request("POST", "/v1/completions", b"{", {"Content-Length": "50"})
            connections[0].request("POST", "/v1/completions", json.dumps({**asked, "stream": True}))
            stream = connections[0].getresponse()
            stream.readline()
            connections[1].request("POST", "/v1/completions", json.dumps({**asked, "n": 1}))
            server.wait_until(lambda: server.service.taken == 9)
        last = stream.read().split(b"\n\n")[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "shutdown"
        for connection in connections[1:]:
            answer = connection.getresponse()
            assert answer.status == 503
            assert json.loads(answer.read())["error"]["code"] == "shutdown"
    assert "Traceback" not in caplog.text


def test_a_server_that_ends_at_once_complains_of_nothing() -> None:
    """As after a second Ctrl-C: what is left on the event loop is cancelled, and the service is not waited for."""
    told: list[str] = []
    calls: list[str] = []
    service: Any = types.SimpleNamespace(
        options=OPTIONS, start=lambda: calls.append("start"), stop=lambda: calls.append("stop")
    )

    async def receive() -> dict[str, str]:
        if told:
            raise asyncio.CancelledError
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message["type"])

    asyncio.run(Routes(service).app()({"type": "lifespan", "state": {}}, receive, send))
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert calls == ["start"]


@contextlib.contextmanager
def process(directory: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """A server in a process of its own, which has begun to stream a long answer over this connection."""
    arguments = command("serve", directory, "--port", port, "--json")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        listening = json.loads(process.stdout.readline())
        asked: Any = {"model": listening["model"], "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(listening["url"].removeprefix("http://"), timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(asked))
            yield process, connection
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_server_starts_again_and_sigterm_ends_one_once_its_answers_are_given(directory: Path) -> None:
    with process(directory, 0) as (killed, connection):
        port = connection.port
        response = connection.getresponse()
        response.readline()
        killed.send_signal(signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        assert killed.wait(60) == -signal.SIGKILL
    with process(directory, port) as (ended, connection):
        response = connection.getresponse()
        response.readline()
        ended.send_signal(signal.SIGTERM)
        *_, usage, done, end = response.read().split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        assert json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"] == 250
        assert ended.wait(120) == 0
