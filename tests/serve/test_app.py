"""The real openai client against a server: answers, streams, company, departures, and too many at once."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import gc
import http.client
import random
import socket
import threading
from typing import Any

import pytest
import torch

from bittorch.models import GenerationConfig, LanguageModel
from bittorch.models.chat_template import ChatTemplate

pytest.importorskip("tests.serve.servers")

import openai

from bittorch.serve.scheduler import Job
from tests.serve.servers import OPTIONS, Running, serving

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 世界!"}]


def reference(model: LanguageModel, prompt: str, **config: Any) -> str:
    (text,) = model.generate(prompt, GenerationConfig(**config))
    return text


def test_models_health_and_metrics(server: Running) -> None:
    (listed,) = server.client.models.list().data
    assert (listed.id, listed.owned_by) == ("tiny", "bittorch")
    assert server.client.models.retrieve("tiny") == listed
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other")
    assert server.ask("/health", method="GET").json == {"status": "ok"}
    assert b"bittorch_slots 4.0" in server.ask("/metrics", method="GET").body


def test_a_conversation_is_answered_as_the_model_answers_it(server: Running, model: LanguageModel) -> None:
    assert model.tokenizer is not None
    prompt = model.tokenizer.encode_chat(HELLO)
    assert len(prompt) > OPTIONS.chunk
    (expected,) = model.generate([prompt], max_new_tokens=20)
    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=20)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 20)
    assert (choice.finish_reason, answer.object) == ("length", "chat.completion")


def test_a_stream_is_the_whole_answer(server: Running) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 30, "temperature": 1.5, "seed": 7, "n": 2}
    whole = server.client.chat.completions.create(**asked)
    texts, reasons, roles, usages = ["", ""], [None, None], [None, None], []
    for chunk in server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            roles[choice.index] = choice.delta.role or roles[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant", "assistant"]
    assert usages[-1] is not None
    assert whole.usage is not None
    assert usages[-1].completion_tokens == whole.usage.completion_tokens
    assert not any(usages[:-1])


def test_completions_of_texts_and_tokens(server: Running, model: LanguageModel) -> None:
    text = "Once upon a time"
    asked: Any = {
        "model": "tiny",
        "max_tokens": 24,
        "temperature": 0.9,
        "top_p": 0.95,
        "presence_penalty": 0.5,
        "seed": 3,
    }
    plain = {"temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.5, "seed": 3, "max_new_tokens": 24}
    expected = reference(model, text, **plain)
    assert server.client.completions.create(prompt=text, **asked).choices[0].text == expected
    assert model.tokenizer is not None
    both = server.client.completions.create(prompt=[model.tokenizer.encode(text), [65, 66]], **asked)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == expected
    stop = expected[5:8]
    until = server.client.completions.create(prompt=text, stop=["\x00", stop], **asked).choices[0]
    assert (until.text, until.finish_reason) == (expected[: expected.index(stop)], "stop")
    streamed = server.client.completions.create(prompt=text, stop=stop, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == until.text


def test_logprobs_are_those_of_the_logits(server: Running, model: LanguageModel) -> None:
    assert model.tokenizer is not None
    prompt = [72, 101, 108]
    answer = server.client.completions.create(model="tiny", prompt=prompt, max_tokens=3, logprobs=2, temperature=0)
    told = answer.choices[0].logprobs
    (tokens,) = model.stream([prompt], max_new_tokens=3).run().tokens
    logs = model(torch.tensor([[*prompt, *tokens]]))[0, 2:5].double().log_softmax(-1)
    assert told is not None
    assert told.token_logprobs == pytest.approx([float(row[t]) for row, t in zip(logs, tokens, strict=True)], abs=1e-4)
    assert told.tokens == [model.tokenizer.decode([token]) for token in tokens]
    chat = server.client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=3
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [len(token.top_logprobs) for token in content] == [3, 3]
    assert content[0].logprob == content[0].top_logprobs[0].logprob


def test_answers_in_company_are_those_alone_bit_for_bit(server: Running) -> None:
    def asked(i: int) -> Any:
        prompt = f"{i} " + "What is a lighthouse? " * (i % 4)
        return {"model": "tiny", "prompt": prompt, "max_tokens": 12 + i, "temperature": 0.8, "seed": i, "logprobs": 1}

    alone = [server.client.completions.create(**asked(i)).choices[0] for i in range(6)]
    kept_before = server.service.metrics.kept._value.get()

    async def together() -> list[Any]:
        client = openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
        return await asyncio.gather(*(client.completions.create(**asked(i)) for i in reversed(range(6))))

    for choice, answer in zip(reversed(alone), asyncio.run(together()), strict=True):
        assert answer.choices[0] == choice  # probabilities to the last bit
    assert server.service.metrics.kept._value.get() > kept_before  # and some of it with kept prompts


def test_what_a_client_leaves_ends(server: Running) -> None:
    cancelled = server.service.metrics.ended.labels("cancelled")._value
    before = cancelled.get()
    endless: Any = {"model": "tiny", "prompt": "x", "max_tokens": 250, "extra_body": {"ignore_eos": True}}
    stream = server.client.completions.create(**endless, stream=True)
    next(iter(stream))
    stream.close()
    server.wait_until(lambda: cancelled.get() == before + 1)
    with pytest.raises(openai.APITimeoutError):
        server.client.with_options(timeout=0.05).completions.create(**endless, n=3)
    server.wait_until(lambda: server.service.scheduler.busy == 0 and server.service.taken == 0)


def test_a_burst_is_answered_or_refused(model: LanguageModel) -> None:
    options = dataclasses.replace(OPTIONS, slots=2, queue=2)
    with serving(model, options) as running:

        async def burst() -> list[Any]:
            client = openai.AsyncOpenAI(base_url=running.url, api_key="none", max_retries=0)
            asked: Any = {"model": "tiny", "prompt": "burst", "max_tokens": 40}
            return await asyncio.gather(
                *(client.completions.create(**asked) for _ in range(40)), return_exceptions=True
            )

        answers = asyncio.run(burst())
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        served = [answer.choices[0].text for answer in answers if not isinstance(answer, Exception)]
        assert len(refused) + len(served) == 40
        assert len(served) >= 4
        assert len(set(served)) == 1
        assert {error.response.headers["retry-after"] for error in refused} <= {"1"}
        assert refused
        assert refused[0].code == "rate_limit_exceeded"


def test_a_request_that_takes_too_long_ends(model: LanguageModel) -> None:
    options = dataclasses.replace(OPTIONS, seconds=1e-6)
    with serving(model, options) as running:
        with pytest.raises(openai.InternalServerError) as error:
            running.client.completions.create(model="tiny", prompt="x")
        assert (error.value.status_code, error.value.code) == (504, "timeout")


def test_a_model_whose_logits_are_not_finite_fails_alone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    step = model.step

    def poisoned(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = step(tokens, *args, **kwargs)
        return torch.where(logits.new_tensor(kwargs["rows"])[:, None] == 1, torch.nan, logits)

    with serving(model, OPTIONS) as running:
        monkeypatch.setattr(model, "step", poisoned)
        with pytest.raises(openai.InternalServerError, match="not finite"):
            running.client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=4)
        monkeypatch.undo()
        assert running.client.completions.create(model="tiny", prompt="a", max_tokens=4).usage is not None


def test_threads_end_with_the_server(model: LanguageModel) -> None:
    before = threading.active_count()
    with serving(model, OPTIONS) as running:
        running.client.completions.create(model="tiny", prompt="x", max_tokens=2)
    assert threading.active_count() == before


def test_vectors_are_those_of_the_model(server: Running, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a lighthouse", "Grüße, 世界"]
    with pytest.raises(openai.BadRequestError, match="makes no vectors"):
        server.client.embeddings.create(model="tiny", input="a")
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, pooling="mean"))
    expected = model.embed(texts)
    made = server.client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    assert torch.equal(torch.tensor([entry.embedding for entry in made.data]), expected)
    plain = server.client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert [entry.embedding for entry in plain.data] == [entry.embedding for entry in made.data]
    assert model.tokenizer is not None
    assert made.usage.prompt_tokens == sum(len(model.tokenizer.encode(text)) for text in texts)
    for wrong in ([], [""], "a" * 300, [[10**6]], ["a"] * 257, {}):
        with pytest.raises(openai.BadRequestError):
            server.client.embeddings.create(model="tiny", input=wrong)  # type: ignore[arg-type]


def test_tools_go_to_the_template(server: Running, model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "tools": [tool]}
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        server.client.chat.completions.create(**asked)
    template = ChatTemplate("{{ tools | tojson if tools }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    monkeypatch.setattr(server.service.tokenizer, "chat_template", template)
    assert server.service.tokenizer.chat_template is template
    prompt = server.service.tokenizer.encode_chat(HELLO, tools=[tool])
    answer = server.client.chat.completions.create(**asked)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.choices[0].message.content == model.generate([prompt], max_new_tokens=8)[0]
    without = server.client.chat.completions.create(**asked, tool_choice="none")
    assert without.usage is not None
    assert without.usage.prompt_tokens == len(server.service.tokenizer.encode_chat(HELLO))
    loop = ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    monkeypatch.setattr(server.service.tokenizer, "chat_template", loop)
    with pytest.raises(openai.BadRequestError, match="units of work"):
        server.client.chat.completions.create(model="tiny", messages=HELLO)


@pytest.mark.slow
def test_nothing_is_left_of_a_thousand_requests_of_which_many_go_wrong(server: Running) -> None:
    server.client.completions.create(model="tiny", prompt="a", max_tokens=1)
    service, threads = server.service, threading.active_count()
    draws = random.Random(5)
    kinds = draws.choices(("whole", "stream", "leave", "impatient", "wrong", "large", "torn"), k=1000)
    statuses: collections.Counter[str] = collections.Counter()

    def one(index: int, kind: str) -> str:
        asked: Any = {"model": "tiny", "prompt": f"{index % 9} and", "max_tokens": 1 + index % 30, "seed": index}
        client = server.client
        try:
            if kind == "whole":
                client.completions.create(**asked, n=1 + index % 2)
            elif kind == "stream":
                list(client.completions.create(**asked, stream=True))
            elif kind == "leave":
                stream = client.completions.create(**{**asked, "max_tokens": 200}, stream=True)
                next(iter(stream))
                stream.close()
            elif kind == "impatient":
                client.with_options(timeout=0.02).completions.create(**{**asked, "max_tokens": 200})
            elif kind == "torn":
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    connection.sendall(
                        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
                    )
            else:
                return str(server.ask("/v1/completions", b"{" if kind == "wrong" else b" " * (1 << 21)).status)
        except openai.APIStatusError as error:
            return str(error.status_code)
        except openai.APITimeoutError:
            return "left"
        except (ConnectionError, http.client.HTTPException):
            assert kind == "large"  # the server answers before it has read all, and closes
            return "413"
        return "done"

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for status in pool.map(one, range(1000), kinds):
            statuses[status] += 1
    assert set(statuses) <= {"done", "left", "400", "413", "429"}, statuses
    assert statuses["done"] > 100
    server.wait_until(lambda: service.scheduler.busy == 0 and service.taken == 0)
    server.wait_until(lambda: threading.active_count() <= threads)
    gc.collect()
    assert sum(type(left) is Job for left in gc.get_objects()) <= OPTIONS.slots  # those of the last step
    assert server.client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
