"""Between requests and the engine: prompts become tokens, answers come back to whoever waits for them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from bittorch.models import LanguageModel
from bittorch.models.token_numbers import token_numbers
from bittorch.serve.errors import ApiError, overloaded
from bittorch.serve.fields import DEEPEST
from bittorch.serve.metrics import Metrics
from bittorch.serve.options import Options
from bittorch.serve.protocol import TextRequest, VectorsRequest
from bittorch.serve.scheduler import Done, Event, Failure, Job, Progress, Scheduler, Vectors, Work

T = TypeVar("T")


class Service:
    """A model that answers requests.

    Args:
        model: with a tokenizer.
        options: of the server; its context must not be longer than the model's.

    Raises:
        ValueError: a model without a tokenizer, a longer context.
    """

    def __init__(self, model: LanguageModel, options: Options) -> None:
        if model.tokenizer is None:
            raise ValueError("a server needs a model with a tokenizer")
        if options.context > model.config.max_positions:
            raise ValueError(f"context is {options.context}, the model has {model.config.max_positions} positions")
        self.model, self.options, self.metrics, self.created = model, options, Metrics(), int(time.time())
        self.tokenizer = model.tokenizer.copy()  # that of the model is the scheduler's
        self.scheduler = Scheduler(model, options, self.metrics, self._deliver)
        self.scheduler.warm_up()
        self.taken = 0  # places; of the event loop alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._texts = ThreadPoolExecutor(1, "bittorch-texts")

    def start(self) -> None:
        """Starts the engine; what it makes goes to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.scheduler.start()

    def stop(self) -> None:
        """Ends the engine, which finishes no answer."""
        self.scheduler.stop()
        self.scheduler.join()
        self._texts.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        return self.scheduler.is_alive()

    def _deliver(self, events: list[Event]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():  # as after a second Ctrl-C
            self._loop.call_soon_threadsafe(_receive, events)

    def check_place(self) -> None:
        """Raises ApiError where no request finds a place now."""
        self.take(1)
        self.give(1)

    def take(self, places: int) -> None:
        """Takes places for so many answers. Raises ApiError where there are fewer."""
        if self.taken + places > self.options.places:
            self.metrics.refused.inc()
            raise overloaded(f"all {self.options.places} places are taken; try again later")
        self.taken += places

    def give(self, places: int) -> None:
        """Gives places back."""
        self.taken -= places

    async def in_texts(self, function: Callable[[], T]) -> T:
        """Runs what may take a while, away from the event loop; one at a time, since the tokenizer is one."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, function)

    async def jobs(self, request: TextRequest, begun: float) -> list[Job]:
        """The answers to make for a request: n for each prompt, in this order. Raises ApiError."""
        prompts = await self.in_texts(lambda: self._tokens(request))
        made = []
        for prompt in prompts:
            room = self.options.context + 1 - len(prompt)  # nothing is predicted from the last token of an answer
            if room < 1 or (request.most or 1) > room:
                wanted = f" and {request.most} of the answer" if request.most else ""
                raise ApiError(
                    f"the prompt has {len(prompt)} tokens{wanted}; this server has a context of {self.options.context}",
                    param="messages" if request.chat else "prompt",
                    code="context_length_exceeded",
                )
            config = dataclasses.replace(request.config, max_new_tokens=request.most or room)
            for number in range(request.n):
                deadline = begun + self.options.seconds
                made.append(Job(prompt, config, number, request.logprobs, deadline=deadline, begun=begun))
        return made

    async def vectors(self, request: VectorsRequest, begun: float) -> Vectors:
        """The vectors to make for a request. Raises ApiError."""
        most, pooling = self.model.config.max_positions, self.model.config.pooling
        if not pooling:
            raise ApiError("this model makes no vectors: its checkpoint does not say how", code="unsupported_model")
        texts = await self.in_texts(lambda: self._prompts(request.inputs, "input"))
        if (longest := max(map(len, texts))) > most:
            message = f"an input has {longest} tokens; this model has a context of {most}"
            raise ApiError(message, param="input", code="context_length_exceeded")
        deadline = begun + self.options.seconds
        return Vectors(texts, lambda text: self.model.embed([text])[0].cpu(), deadline=deadline, begun=begun)

    def _tokens(self, request: TextRequest) -> list[list[int]]:
        """Of each prompt. Raises ApiError."""
        if not request.chat:
            return self._prompts(request.prompts, "prompt")
        try:
            return [self._conversation(request)]
        except ValueError as error:  # of template or tokenizer
            raise ApiError(str(error), param="messages") from None
        except RecursionError:
            raise ApiError(DEEPEST) from None

    def _conversation(self, request: TextRequest) -> list[int]:
        template = self.tokenizer.chat_template
        if template is None:
            raise ApiError("this model has no chat template; ask /v1/completions", param="messages")
        if request.tools is None:
            return self.tokenizer.encode_chat(request.messages)
        if "tools" not in template.source:
            raise ApiError("the chat template of this model takes no tools", param="tools")
        return self.tokenizer.encode_chat(request.messages, tools=request.tools)

    def _prompts(self, given: Sequence[str | list[int]], param: str) -> list[list[int]]:
        """The tokens of each, for a field of the request. Raises ApiError."""
        size = self.model.config.vocab_size
        try:
            return [token_numbers(prompt, self.tokenizer, size, f"'{param}'") for prompt in given]
        except ValueError as error:
            raise ApiError(str(error), param=param) from None


class Exchange:
    """The answers to one request, from the engine to its client.

    Args:
        service: whose places and engine these are.
        jobs: the answers, or vectors.
        disconnected: returns when the client has left.
    """

    def __init__(self, service: Service, jobs: Sequence[Work], disconnected: Callable[[], Awaitable[None]]) -> None:
        self.service, self.jobs = service, jobs
        self._disconnected = disconnected
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = False

    def begin(self) -> None:
        """Hands the jobs to the engine; `end` must follow. Raises ApiError, and nothing is to end, without places."""
        self.service.take(len(self.jobs))
        for job in self.jobs:
            job.receive = self._events.put_nowait
        self._watch = asyncio.ensure_future(self._until_gone())
        self.service.scheduler.submit(self.jobs)

    def end(self) -> None:
        """Ends what is not finished, before the engine's next step."""
        self._watch.cancel()
        self._cancel()
        self.service.give(len(self.jobs))

    async def steps(self) -> AsyncIterator[tuple[int, Progress]]:
        """Which answer goes on and how, until all have ended.

        Raises:
            ApiError: one failed.
            Disconnected: the client has left.
        """
        left = len(self.jobs)
        while left:
            event = await self._next()
            assert isinstance(event, Progress)
            left -= event.finish_reason is not None
            yield self.jobs.index(event.job), event

    async def vectors(self) -> list[Tensor]:
        """Those of the one job. Raises as `steps`."""
        event = await self._next()
        assert isinstance(event, Done)
        return event.job.made

    async def _next(self) -> Event:
        event = await self._events.get()
        if event is None or self._gone:
            raise Disconnected
        if isinstance(event, Failure):
            raise event.error
        return event

    @property
    def kept(self) -> int:
        """Tokens of the prompts that were not computed again, each prompt once."""
        return sum({id(job.prompt): job.kept for job in self.jobs if isinstance(job, Job)}.values())

    async def _until_gone(self) -> None:
        await self._disconnected()
        self._cancel()
        self._gone = True
        self._events.put_nowait(None)  # for one who waits

    def _cancel(self) -> None:
        for job in self.jobs:
            job.cancelled = True


class Disconnected(Exception):
    """Nobody waits for the answer."""


def _receive(events: list[Event]) -> None:
    for event in events:
        event.job.receive(event)
