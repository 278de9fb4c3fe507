"""The thread that owns the engine: who gets a slot, what a step reads, and who has ended.

Every step reads one token of each answer that is being made, and prompts in chunks. A chunk begins at a multiple of
its length whatever else the step reads, so that a prompt's sums are added up in the same order in any company.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bittorch.models import GenerationConfig
from bittorch.models.continuation import Continuation, Speaker
from bittorch.models.engine import Engine, Running
from bittorch.models.kv_cache import held_beginning
from bittorch.models.sampling import log_probabilities, sound_rows
from bittorch.serve.errors import ApiError, failed, log
from bittorch.serve.metrics import Metrics
from bittorch.serve.options import Options

REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclasses.dataclass(frozen=True)
class Told:
    """A token with its logarithm of probability, and the likeliest ones with theirs; texts, not numbers."""

    text: str
    logprob: float
    likeliest: list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a step adds to an answer.

    Args:
        job: whose answer.
        text: may be empty.
        tokens: of the answer so far.
        finish_reason: None while it goes on; else ``stop`` or ``length``.
        told: where the request wants logarithms of probabilities, and the token is one of the text.
    """

    job: Job
    text: str
    tokens: int
    finish_reason: str | None
    told: Told | None


@dataclasses.dataclass(frozen=True)
class Done:
    """All vectors are made."""

    job: Vectors


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an answer does not go on."""

    job: Work
    error: ApiError


Event = Progress | Done | Failure


@dataclasses.dataclass(eq=False, kw_only=True)
class Work:
    """What a client wants.

    Args:
        receive: is given what becomes of it, by the scheduler's ``deliver``.
        deadline, begun: of `time.monotonic`.

    Attributes:
        cancelled: nobody wants it; it ends before the next step.
    """

    receive: Callable[[Event], None] = lambda event: None
    deadline: float = float("inf")
    begun: float = dataclasses.field(default_factory=time.monotonic)
    cancelled: bool = False


@dataclasses.dataclass(eq=False)
class Job(Work):
    """One answer to make.

    Args:
        prompt: token numbers; with ``config.max_new_tokens`` they fit into the context.
        config: how.
        number: added to the seed.
        logprobs: None for none; else how many of the likeliest tokens are told.

    Attributes:
        kept: tokens of the prompt that were not computed again.
    """

    prompt: list[int]
    config: GenerationConfig
    number: int = 0
    logprobs: int | None = None
    kept: int = 0


@dataclasses.dataclass(eq=False)
class Vectors(Work):
    """Texts to make vectors of, one between two steps.

    Args:
        texts: token numbers of each.
        embed: gives the vector of some.

    Attributes:
        made: those that there are.
    """

    texts: list[list[int]]
    embed: Callable[[list[int]], Tensor]
    made: list[Tensor] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Slot:
    """An answer that is being made."""

    job: Job
    sequence: Running
    continuation: Continuation


class Scheduler(threading.Thread):
    """Makes answers until it is stopped.

    Args:
        model: with a tokenizer, which nothing else uses.
        options: slots, context, chunk and step_tokens.
        metrics: are kept up to date.
        deliver: is called in this thread after each step with all that has happened.
    """

    def __init__(
        self, model: Speaker, options: Options, metrics: Metrics, deliver: Callable[[list[Event]], None]
    ) -> None:
        super().__init__(name="bittorch-engine", daemon=True)
        self.model, self.options, self.metrics, self.deliver = model, options, metrics, deliver
        self.engine = Engine(model, model.new_cache(options.slots, options.context))
        self.steps = 0
        self._news: list[Event] = []
        self._slots: dict[Running, _Slot] = {}
        self._waiting: deque[Job] = deque()
        self._vectors: deque[Vectors] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._held: list[list[int]] = [[] for _ in range(options.slots)]  # of each row, what another prompt may keep
        self._used = [0] * options.slots  # the step after which each row was free
        metrics.slots.set(options.slots)
        metrics.capacity.set(options.slots * options.context)

    @property
    def busy(self) -> int:
        """Answers and vectors that are made or wait."""
        return len(self._slots) + len(self._waiting) + len(self._vectors)

    def submit(self, work: Sequence[Work]) -> None:
        """Puts work behind all other."""
        with self._changed:
            self._waiting.extend(job for job in work if isinstance(job, Job))
            self._vectors.extend(job for job in work if isinstance(job, Vectors))
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread before the next step, whatever is left to do."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def warm_up(self) -> None:
        """Runs a prompt and a token, so that the first request does not wait for what is made once."""
        with torch.inference_mode():
            sequence = self.engine.add([0] * min(self.options.chunk, self.options.context - 1))
            self.engine.step()
            sequence.append(0)
            self.engine.step()
            self.engine.drop(sequence)

    def run(self) -> None:
        """The thread."""
        with torch.inference_mode():
            while self._wait():
                try:
                    self._round()
                except Exception as error:  # the thread must outlive whatever a step meets
                    log(error)
                    self._give_up(failed(f"a step failed: {type(error).__name__}"))
                self._count()
                if self._news:
                    news, self._news = self._news, []
                    self.deliver(news)

    def _wait(self) -> bool:
        """Until there is something to do; whether there is."""
        with self._changed:
            while not (self._stopped or self.busy):
                self._changed.wait()
            return not self._stopped

    def _round(self) -> None:
        """Who leaves, who comes, and a step."""
        begin = time.monotonic()
        for slot in list(self._slots.values()):
            if self._over(slot.job, begin):
                self._drop(slot)
        self._embed(begin)
        begin = time.monotonic()
        self._admit(begin)
        counts = self._counts()
        if not counts:
            return
        asked = time.monotonic()
        logits = self.engine.step(counts).float()
        self.metrics.model.observe(time.monotonic() - asked)
        self.steps += 1
        self._take(counts, logits)
        self.metrics.step.observe(time.monotonic() - begin)

    def _embed(self, now: float) -> None:
        """Makes one vector, of the request that is first."""
        if not self._vectors:
            return
        job = self._vectors[0]
        if not self._over(job, now):
            try:
                job.made.append(job.embed(job.texts[len(job.made)]))
            except Exception as error:  # hidden states that are not finite, no memory
                log(error)
                self._fail(job, failed(f"a vector cannot be made: {type(error).__name__}"))
            else:
                self.metrics.prompt.inc(len(job.texts[len(job.made) - 1]))
                if len(job.made) < len(job.texts):
                    return
                self.metrics.ended.labels("vectors").inc()
                self._news.append(Done(job))
        self._vectors.popleft()

    def _over(self, job: Work, now: float) -> bool:
        """Whether a job is to end before its answer does; its client is told."""
        if job.cancelled:
            self.metrics.ended.labels("cancelled").inc()
        elif now > job.deadline:
            error = failed(f"no answer within {self.options.seconds:g} seconds", 504, "timeout")
            self._fail(job, error, "timeout")
        else:
            return False
        return True

    def _fail(self, job: Work, error: ApiError, reason: str = "error") -> None:
        """Tells and counts that a job ends by an error."""
        self.metrics.ended.labels(reason).inc()
        self._news.append(Failure(job, error))

    def _admit(self, now: float) -> None:
        """Gives free rows to those who wait, in order."""
        with self._changed:
            kept = [job for job in self._waiting if not self._over(job, now)]
            free = len(self.engine.free)
            coming, self._waiting = kept[:free], deque(kept[free:])
        for job in coming:
            try:
                self._begin(job)
            except Exception as error:  # such as no memory for what penalties count
                log(error)
                self._fail(job, failed(f"the answer cannot begin: {type(error).__name__}"))

    def _begin(self, job: Job) -> None:
        """Gives a job a row."""
        own = Continuation(self.model, job.prompt, job.config, self.options.context, job.number)
        row, job.kept = self._best_row(job.prompt)
        self._held[row] = []
        sequence = self.engine.add(job.prompt, job.kept, row)
        self._slots[sequence] = _Slot(job, sequence, own)
        self.metrics.kept.inc(job.kept)

    def _best_row(self, prompt: list[int]) -> tuple[int, int]:
        """The free row that holds most of a prompt's beginning, else the one not used for longest; and how much."""
        common = {row: self._common(row, prompt) for row in self.engine.free}
        row = max(common, key=lambda row: (common[row], -self._used[row]))
        return row, common[row]

    def _common(self, row: int, prompt: list[int]) -> int:
        """How many tokens at the beginning of a prompt a free row holds: whole chunks, which were read as chunks."""
        same = held_beginning(prompt, self._held[row])
        return self.engine.cache.keepable(row, same - same % self.options.chunk)

    def _counts(self) -> dict[Running, int]:
        """What the next step reads: a token of each answer, and chunks of prompts, the oldest first."""
        chunk, left = self.options.chunk, self.options.step_tokens
        counts = {s: 1 for s, slot in self._slots.items() if slot.continuation.answer_length}
        for slot in self._slots.values():  # in the order in which they came
            if not slot.continuation.answer_length:
                wanted = min(chunk, len(slot.sequence.pending))
                if wanted > left:
                    break
                counts[slot.sequence] = wanted
                left -= wanted
        return {sequence: counts[sequence] for sequence in self.engine.running if sequence in counts}

    def _take(self, counts: dict[Running, int], logits: Tensor) -> None:
        """Makes a token of each row of logits that follows a whole prompt or an answer."""
        now = time.monotonic()
        sound = sound_rows(logits)
        for index, (sequence, count) in enumerate(counts.items()):
            slot = self._slots[sequence]
            if not slot.continuation.answer_length:
                self.metrics.prompt.inc(count)
            if sequence.pending:
                continue
            if not sound[index]:
                self._fail(slot.job, failed("the model's logits are not finite"))
                self._drop(slot)
                continue
            if not slot.continuation.answer_length:
                self.metrics.first.observe(now - slot.job.begun)
            try:
                self._push(slot, logits[index])
            except Exception as error:  # the other answers go on
                log(error)
                self._fail(slot.job, failed(f"the answer cannot go on: {type(error).__name__}"))
                self._drop(slot)

    def _push(self, slot: _Slot, logits: Tensor) -> None:
        own, job = slot.continuation, slot.job
        token = own.choose(logits)
        told = self._tell(job.logprobs, logits, token)
        text = own.push(token)
        self.metrics.answer.inc()
        reason = None if own.finish_reason is None else REASONS[own.finish_reason]
        self._news.append(Progress(job, text, own.answer_length, reason, None if own.finish_reason == "eos" else told))
        if reason is None:
            slot.sequence.append(token)
        else:
            self.metrics.ended.labels(reason).inc()
            self._drop(slot)

    def _tell(self, most: int | None, logits: Tensor, token: int) -> Told | None:
        if most is None:
            return None
        assert self.model.tokenizer is not None
        decode = self.model.tokenizer.decode
        own, likeliest = log_probabilities(logits, token, most)
        return Told(decode([token]), own, [(decode([other]), value) for other, value in likeliest])

    def _drop(self, slot: _Slot) -> None:
        """Frees a slot; what its row holds of the prompt in whole chunks stays for others."""
        row, prompt, chunk = slot.sequence.row, slot.job.prompt, self.options.chunk
        read = min(self.engine.cache.lengths[row], len(prompt))
        self._held[row] = prompt[: read - read % chunk]
        self._used[row] = self.steps
        self.engine.drop(slot.sequence)
        del self._slots[slot.sequence]

    def _give_up(self, error: ApiError) -> None:
        """Ends all answers that have a slot, whose rows hold who knows what."""
        for slot in list(self._slots.values()):
            self._fail(slot.job, error)
            self._drop(slot)
            self._held[slot.sequence.row] = []
            self.engine.cache.truncate(slot.sequence.row, 0)

    def _count(self) -> None:
        self.metrics.running.set(len(self._slots))
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.held.set(sum(self.engine.cache.lengths))
