"""The scheduler without a thread: who is served in which step."""

import dataclasses
import queue
from typing import Any

import pytest
import torch

from bittorch.models import GenerationConfig, LanguageModel

pytest.importorskip("tests.serve.servers")

from bittorch.serve.metrics import Metrics
from bittorch.serve.scheduler import Event, Failure, Job, Progress, Scheduler
from tests.serve.servers import OPTIONS

NEVER = GenerationConfig(max_new_tokens=200, ignore_eos=True, overflow="stop")


class Steps:
    """Rounds by hand, and what each tells."""

    def __init__(self, model: LanguageModel, **changes: Any) -> None:
        self.scheduler = Scheduler(model, dataclasses.replace(OPTIONS, **changes), Metrics(), lambda news: None)

    def round(self) -> list[Event]:
        with torch.inference_mode():
            self.scheduler._round()
        news, self.scheduler._news = self.scheduler._news, []
        return news

    def job(self, prompt: list[int], **values: Any) -> Job:
        job = Job(prompt, values.pop("config", NEVER), **values)
        self.scheduler.submit([job])
        return job


def test_a_cancelled_answer_is_gone_before_the_next_step_and_the_next_one_has_its_slot(model: LanguageModel) -> None:
    steps = Steps(model, slots=1)
    first, second = steps.job([1, 2]), steps.job([3])
    assert [event.job for event in steps.round()] == [first]
    first.cancelled = True
    assert [event.job for event in steps.round()] == [second]
    assert steps.scheduler.busy == 1
    third = steps.job([4])
    third.cancelled = second.cancelled = True  # one that waits, too
    assert steps.round() == []
    assert steps.scheduler.busy == 0


def test_every_answer_goes_on_while_prompts_are_read_in_order(model: LanguageModel) -> None:
    steps = Steps(model, chunk=4, step_tokens=8)
    writer = steps.job([1])
    assert [event.job for event in steps.round()] == [writer]
    first, second, third = (steps.job([5] * 12) for _ in range(3))
    told = [{event.job for event in steps.round()} for _ in range(6)]
    # Chunks of 4: two prompts a step, the oldest first; 12 tokens are three chunks.
    expected = [{writer}, {writer}, {writer, first, second}, {writer, first, second}, {writer, first, second}]
    assert told == [*expected, {writer, first, second, third}]


def test_an_answer_that_is_late_ends_and_waiting_ones_too(model: LanguageModel) -> None:
    steps = Steps(model, slots=1)
    steps.job([1], deadline=float("inf"))
    late = steps.job([2], deadline=-1.0)
    failures = [event for event in steps.round() if isinstance(event, Failure)]
    assert [failure.job for failure in failures] == [late]
    assert failures[0].error.status == 504


def test_a_prompt_keeps_whole_chunks_of_the_row_that_has_most(model: LanguageModel) -> None:
    steps = Steps(model, slots=3, chunk=4, step_tokens=12)
    once = GenerationConfig(max_new_tokens=1, overflow="stop")
    prompts = [[7] * 4 + [8] * 6, [7] * 9, [9] * 9]
    for prompt in prompts:
        steps.job(prompt, config=once)
    for _ in range(4):
        steps.round()
    assert steps.scheduler.busy == 0
    # Of nine tokens one must be new; what is held ends inside a chunk of the second prompt, and a chunk is whole.
    jobs = [steps.job(prompt, config=once) for prompt in ([7] * 9, [7] * 4 + [8] * 2 + [1] * 3, [1] * 9)]
    steps.round()
    assert [job.kept for job in jobs] == [8, 4, 0]
    assert steps.scheduler.metrics.kept._value.get() == 12


def test_an_answer_that_cannot_begin_fails_alone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(model)
    monkeypatch.setattr(steps.scheduler.engine, "add", lambda *args: next(adds)(*args))
    add = steps.scheduler.engine.__class__.add.__get__(steps.scheduler.engine)
    adds = iter([lambda *args: 1 // 0, add])
    bad, good = steps.job([1]), steps.job([2])
    failure, progress = steps.round()
    assert (failure.job, progress.job) == (bad, good)
    assert isinstance(failure, Failure)
    assert failure.error.message == "the answer cannot begin: ZeroDivisionError"


def test_an_answer_whose_token_cannot_be_chosen_fails_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(model)
    bad, good = steps.job([1, 2]), steps.job([3, 4])
    steps.round()
    slot = next(slot for slot in steps.scheduler._slots.values() if slot.job is bad)
    monkeypatch.setattr(slot.continuation, "choose", lambda logits: 1 // 0)
    failure, progress = steps.round()
    assert (failure.job, progress.job) == (bad, good)
    assert isinstance(failure, Failure)
    assert failure.error.message == "the answer cannot go on: ZeroDivisionError"
    assert [event.job for event in steps.round()] == [good]
    assert len(steps.scheduler.engine.free) == OPTIONS.slots - 1


def test_a_step_that_fails_ends_its_answers_and_no_others(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: queue.Queue[Event] = queue.Queue()
    scheduler = Scheduler(model, OPTIONS, Metrics(), lambda news: [delivered.put(event) for event in news] and None)
    jobs = [Job([1, 2], GenerationConfig(max_new_tokens=3)) for _ in range(2)]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(model, "step", fail)
    scheduler.submit(jobs[:1])
    scheduler.start()
    failure = delivered.get(timeout=60)
    assert isinstance(failure, Failure)
    assert (failure.job, failure.error.status, failure.error.message) == (jobs[0], 500, "a step failed: MemoryError")
    monkeypatch.undo()
    scheduler.submit(jobs[1:])
    rest = [delivered.get(timeout=60) for _ in range(3)]
    assert [event.tokens for event in rest if isinstance(event, Progress)] == [1, 2, 3]
    scheduler.stop()
    scheduler.join(60)
    assert not scheduler.is_alive()
