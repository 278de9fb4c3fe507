"""The routes of a server, and how answers are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bittorch.serve import protocol, replies
from bittorch.serve.errors import ApiError, ending, failed, log, overloaded
from bittorch.serve.fields import parse
from bittorch.serve.guard import Guard
from bittorch.serve.metrics import CONTENT_TYPE
from bittorch.serve.options import Options
from bittorch.serve.page import page
from bittorch.serve.protocol import TextRequest
from bittorch.serve.service import Disconnected, Exchange, Service

MOST_OPEN = 512  # requests beyond those with a place: each may hold a whole body
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An object; only ASCII, which holds any text."""
    return Response(json.dumps(value), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (408, 413):  # the rest of the body is not read
        headers["connection"] = "close"
    return json_response(error.body(), error.status, headers)


class Routes:
    """What each address does.

    Args:
        service: answers.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.options = service, service.options
        self.guard = Guard(service.options)
        self._open = 0

    def app(self) -> Starlette:
        """The application, which starts the service and ends it."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self.service.start()
            try:
                yield
            except asyncio.CancelledError:  # a second Ctrl-C, which waits for nothing
                return
            self.service.stop()

        routes = [
            Route("/health", self._handled(self.health, open_to_all=True)),
            Route("/metrics", self._handled(self.metrics)),
            Route("/v1/models", self._handled(self.models)),
            Route("/v1/models/{name:path}", self._handled(self.model)),
            Route("/v1/chat/completions", self._handled(self.chat), methods=["POST"]),
            Route("/v1/embeddings", self._handled(self.embeddings), methods=["POST"]),
            Route("/", self._handled(self.page, open_to_all=True)),
            Route("/v1/completions", self._handled(self.completions), methods=["POST"]),
        ]
        origins = list(self.options.origins)
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        app = Starlette(
            routes=routes,
            middleware=[cors] if origins else [],
            exception_handlers={HTTPException: _http_error},
            lifespan=lifespan,
        )
        app.router.redirect_slashes = False  # it would lead to whatever host the request names, before the guard
        return app

    def _handled(self, handler: Handler, open_to_all: bool = False) -> Handler:
        """A handler behind the guard, whose errors have OpenAI's shape."""

        async def handled(request: Request) -> Response:
            self._open += 1
            try:
                self.guard.check(request.headers, open_to_all)
                if self._open > MOST_OPEN + self.options.places:
                    raise overloaded("too many requests at the same time; try again later")
                response = await handler(request)
            except ApiError as error:
                response = error_response(error)
            except (Disconnected, ClientDisconnect):
                response = Response(status_code=499)  # nobody reads it
            except asyncio.CancelledError:
                response = error_response(ending())
            except Exception as error:
                log(error)
                response = error_response(failed("the server failed on this request"))
            finally:
                self._open -= 1
            self.service.metrics.requests.labels(str(response.status_code)).inc()
            return response

        return handled

    async def health(self, request: Request) -> Response:
        """Whether the engine runs."""
        alive = self.service.alive
        return json_response({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """The list of the one model."""
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        protocol.check_model(request.path_params["name"], self.options)
        return json_response(self._model())

    def _model(self) -> replies.Json:
        return replies.model(self.options.name, self.service.created, self.options.context)

    async def chat(self, request: Request) -> Response:
        """The answer to a conversation."""
        return await self._answer(request, protocol.chat)

    async def completions(self, request: Request) -> Response:
        """What follows a text."""
        return await self._answer(request, protocol.completion)

    async def embeddings(self, request: Request) -> Response:
        """The vectors of texts."""
        begun = time.monotonic()
        asked = await self._asked(request, protocol.embeddings)
        job = await self.service.vectors(asked, begun)
        exchange = Exchange(self.service, [job], lambda: _disconnected(request))
        exchange.begin()
        try:
            vectors = await exchange.vectors()
        finally:
            exchange.end()
        tokens = sum(map(len, job.texts))
        return json_response(replies.vectors(self.options.name, vectors, tokens, asked.base64))

    async def page(self, request: Request) -> Response:
        """A page to chat on."""
        text, headers = page()
        return Response(text, headers=headers, media_type="text/html")

    async def _answer(self, request: Request, read: Callable[[replies.Json, Options], TextRequest]) -> Response:
        begun = time.monotonic()
        asked = await self._asked(request, read)
        jobs = await self.service.jobs(asked, begun)
        prompts = [len(job.prompt) for job in jobs[:: asked.n]]
        reply = replies.Reply(asked, self.options.name, prompts)
        exchange = Exchange(self.service, jobs, lambda: _disconnected(request))
        exchange.begin()
        steps, streamed = exchange.steps(), False
        try:
            if asked.stream:
                first = await anext(steps)  # what fails until here has a status of its own
                streamed = True
                return EventStream(_frames(reply, exchange, first, steps), exchange.end)
            async for index, progress in steps:
                reply.choices[index].add(progress)
            return json_response(reply.whole(exchange.kept))
        finally:
            if not streamed:
                exchange.end()

    async def _asked(self, request: Request, read: Callable[[replies.Json, Options], T]) -> T:
        """What a body asks for; it is not taken where no request finds a place. Raises ApiError."""
        self.service.check_place()
        body = await self._body(request)
        return await self.service.in_texts(lambda: read(parse(body), self.options))

    async def _body(self, request: Request) -> bytes:
        """All of it, within its limits. Raises ApiError."""
        most = self.options.body_bytes

        async def read() -> bytes:
            data = bytearray()
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise ApiError(f"the body has more than {most} bytes", status=413, code="body_too_large")
            return bytes(data)

        try:
            return await asyncio.wait_for(read(), self.options.body_seconds)
        except asyncio.TimeoutError:
            seconds = self.options.body_seconds
            raise ApiError(f"the body did not arrive within {seconds:g} seconds", status=408, code="timeout") from None


async def _disconnected(request: Request) -> None:
    """Returns once the client has left; of a request whose body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _frames(
    reply: replies.Reply, exchange: Exchange, first: Any, steps: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    """The events of a stream; one that is an error is the last."""
    try:
        for chunk in reply.chunks(*first):
            yield _frame(chunk)
        async for index, progress in steps:
            for chunk in reply.chunks(index, progress):
                yield _frame(chunk)
        for chunk in reply.last(exchange.kept):
            yield _frame(chunk)
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _frame(error.body())
    except asyncio.CancelledError:
        yield _frame(ending().body())


def _frame(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Events as they come, until they end or the client leaves.

    Args:
        frames: the bytes of each.
        end: is called when nothing more is sent, for whatever reason.
    """

    def __init__(self, frames: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        self.frames, self.end = frames, end
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in self.frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (Disconnected, asyncio.CancelledError):  # the latter of a client that does not read when the server ends
            pass
        finally:
            self.end()


async def _http_error(request: Request, error: Exception) -> Response:
    """An address or a method that is not there."""
    assert isinstance(error, HTTPException)
    texts = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return error_response(ApiError(texts.get(error.status_code, "the request is refused"), status=error.status_code))
