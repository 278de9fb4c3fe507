"""Bodies of requests: what is wrong is refused by name, and nothing else ever comes of them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import helpers

pytest.importorskip("tests.serve.servers")

from bittorch.serve import protocol
from bittorch.serve.errors import ApiError
from bittorch.serve.fields import parse
from tests.serve.servers import OPTIONS, Running

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}
# What is wrong with a request for a completion, and the field that the error names.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"prompt": ""}, "prompt[0]"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt[0]"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a"] * 9}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"n": 9}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 0}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"seed": 1.0}, "seed"),
    ({"seed": [1]}, "seed"),
    ({"presence_penalty": 1e9}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": {}}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 1025}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True}, "echo"),
    ({"best_of": 3}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"temprature": 1}, "temprature"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
]
ARGUMENTS = "messages[0].tool_calls[0]"


def call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "god", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "hi", "x": 1}]}, "messages[0].x"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [call('{"a": NaN}')]}]}, ARGUMENTS),
    ({"messages": [{"role": "assistant", "tool_calls": [call("[]")]}]}, ARGUMENTS),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages[0].tool_calls"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": {}}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"modalities": ["audio"]}, "modalities"),
]


def refusal(read: Any, body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as error:
        read(body, OPTIONS)
    assert error.value.message
    return error.value


@helpers.each("wrong", WRONG, ids=lambda wrong: json.dumps(wrong[0])[:60])
def test_what_is_wrong_with_a_completion_is_named(wrong: tuple[dict[str, Any], str]) -> None:
    assert refusal(protocol.completion, {**TEXT, **wrong[0]}).param == wrong[1]


@helpers.each("wrong", WRONG_CHAT, ids=lambda wrong: json.dumps(wrong[0])[:60])
def test_what_is_wrong_with_a_conversation_is_named(wrong: tuple[dict[str, Any], str]) -> None:
    assert refusal(protocol.chat, {**CHAT, **wrong[0]}).param == wrong[1]


def test_an_unknown_model_is_not_found() -> None:
    error = refusal(protocol.chat, {**CHAT, "model": "gpt-7"})
    assert (error.status, error.code) == (404, "model_not_found")


def test_what_a_request_says() -> None:
    body = {**CHAT, "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "stop": "x", "logit_bias": {}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    body["messages"] = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    asked = protocol.chat({**body, "user": "me", "top_p": None}, OPTIONS)
    assert (asked.most, asked.n, asked.stream, asked.logprobs) == (6, 1, False, None)
    assert (asked.config.temperature, asked.config.stop, asked.config.overflow) == (0.5, ("x",), "stop")
    assert asked.messages[0] == {"role": "system", "content": "ab"}
    assert asked.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert asked.messages[2]["tool_call_id"] == "1"
    assert protocol.completion(TEXT, OPTIONS).most == 16


@helpers.each(
    "data",
    [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b'{"a": NaN}', b"[" * 5000, b'{"prompt": "\\ud800"}', b"9" * 5000, b"null"],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError):
        parse(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({*(name for wrong, _ in [*WRONG, *WRONG_CHAT] for name in wrong), "tools", "messages", "prompt"})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.booleans())
def test_any_body_is_read_or_refused(values: dict[str, Any], chat: bool) -> None:
    read, body = (protocol.chat, {**CHAT, **values}) if chat else (protocol.completion, {**TEXT, **values})
    refused = None
    try:
        read(body, OPTIONS)
    except ApiError as error:
        refused = error
    assert refused is None or (400 <= refused.status < 500 and json.dumps(refused.body()).isascii())


def test_over_http_errors_have_the_shape_of_openai(server: Running) -> None:
    long: Any = {**TEXT, "prompt": "a" * 300}
    cases: list[tuple[str, Any, int]] = [
        ("/v1/completions", b"\xff", 400),
        ("/v1/completions", {**TEXT, "prompt": [[1, 10**9]]}, 400),
        ("/v1/completions", long, 400),
        ("/v1/completions", {**TEXT, "max_tokens": 256}, 400),
        ("/v1/completions", b" " * (1 << 20) + b"{}", 413),
        ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400),
        ("/v1/chat/completions", {**CHAT, "model": "\u4e16" * 300}, 404),
        ("/v1/nothing", {}, 404),
        ("/v1/models", {}, 405),
        ("/v1/completions/", TEXT, 404),
    ]
    for path, body, status in cases:
        answer = server.ask(path, body)
        assert answer.status == status, path
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert server.ask("/v1/completions", long).json["error"]["code"] == "context_length_exceeded"
    deep = (
        b'{"model": "tiny", "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '
    )
    answer = server.ask("/v1/chat/completions", deep + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}}]}]}")
    assert 400 <= answer.status < 500
    assert server.client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
