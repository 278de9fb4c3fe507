"""Requests for text, as OpenAI's API writes them, checked and made into what an engine needs. No web framework."""

from __future__ import annotations

import dataclasses
from typing import Any

from bittorch.models import GenerationConfig
from bittorch.serve import messages
from bittorch.serve.errors import ApiError
from bittorch.serve.fields import Fields, wrong
from bittorch.serve.options import SAMPLING, Options

MOST_STOPS, LONGEST_STOP = 16, 1024  # texts; characters
MOST_LOGPROBS = 20
MOST_INPUTS = 256  # texts whose vectors a request wants
COMPLETION_TOKENS = 16  # where a completion does not say how many
# What OpenAI's clients may say, and what changes no answer here.
NO_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
# Fields of OpenAI that are not served, with the values that ask for nothing.
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "parallel_tool_calls": (True,),
    "echo": (False,),
    "suffix": ("",),
}


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """A request for answers.

    Args:
        chat: whether it is a conversation; else prompts to go on from.
        messages, tools: of a conversation.
        prompts: of a completion: texts, or token numbers.
        config: how to choose tokens; its ``max_new_tokens`` is not yet that of the request.
        most: tokens of an answer; None for what the context has room for.
        n: answers to each prompt.
        logprobs: None for none; else how many of the likeliest tokens are told beside each token.
        stream: send the answer as it comes.
        usage: end a stream with the counts of tokens.
    """

    chat: bool
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    prompts: list[str | list[int]]
    config: GenerationConfig
    most: int | None
    n: int
    logprobs: int | None
    stream: bool
    usage: bool


def chat(body: dict[str, Any], options: Options) -> TextRequest:
    """A request to /v1/chat/completions. Raises ApiError."""
    fields = Fields(body)
    _model(fields, options)
    conversation, tools = messages.messages(fields), messages.tools(fields)
    told = fields.integer("top_logprobs", None, 0, MOST_LOGPROBS)
    logprobs = (told or 0) if fields.boolean("logprobs") else None
    if told is not None and logprobs is None:
        raise ApiError("'top_logprobs' needs logprobs to be true", param="top_logprobs")
    most = fields.integer("max_tokens", None, 1, 1 << 30)
    most = fields.integer("max_completion_tokens", most, 1, 1 << 30)
    return _finished(fields, options, conversation, tools, [], most, logprobs)


def completion(body: dict[str, Any], options: Options) -> TextRequest:
    """A request to /v1/completions. Raises ApiError."""
    fields = Fields(body)
    _model(fields, options)
    prompts = _prompts(fields, "prompt", options.choices)
    logprobs = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
    most = fields.integer("max_tokens", COMPLETION_TOKENS, 1, 1 << 30)
    fields.only({"best_of": (body.get("n") or 1,)})
    return _finished(fields, options, [], None, prompts, most, logprobs)


@dataclasses.dataclass(frozen=True)
class VectorsRequest:
    """A request for vectors of texts.

    Args:
        inputs: texts, or token numbers.
        base64: numbers as the base64 of little-endian float32, in place of a list.
    """

    inputs: list[str | list[int]]
    base64: bool


def embeddings(body: dict[str, Any], options: Options) -> VectorsRequest:
    """A request to /v1/embeddings. Raises ApiError."""
    fields = Fields(body)
    _model(fields, options)
    inputs = _prompts(fields, "input", MOST_INPUTS)
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise ApiError("'encoding_format' must be float or base64", param="encoding_format")
    fields.without_effect("user")
    fields.only({"dimensions": ()})
    fields.finish()
    return VectorsRequest(inputs, form == "base64")


def _finished(
    fields: Fields,
    options: Options,
    conversation: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    prompts: list[str | list[int]],
    most: int | None,
    logprobs: int | None,
) -> TextRequest:
    """What both kinds of requests have."""
    stream, config = fields.boolean("stream"), _config(fields, options)
    n = fields.integer("n", 1, 1, options.choices) or 1
    if n * len(prompts) > options.choices:
        raise ApiError(f"{len(prompts)} prompts with n={n} are more than the {options.choices} answers of a request")
    usage = _usage(fields, stream)
    _format(fields)
    fields.without_effect(*NO_EFFECT)
    fields.only(NOT_SERVED)
    fields.finish()
    return TextRequest(bool(conversation), conversation, tools, prompts, config, most, n, logprobs, stream, usage)


def _model(fields: Fields, options: Options) -> None:
    name = fields.text("model")
    if name is None:
        raise ApiError(f"'model' is missing; this server has '{options.name}'", param="model")
    check_model(name, options)


def check_model(name: str, options: Options) -> None:
    """Raises ApiError for another model's name."""
    if name != options.name:
        raise ApiError(
            f"the model '{name[:100]}' does not exist here; this server has '{options.name}'",
            status=404,
            param="model",
            code="model_not_found",
        )


def _prompts(fields: Fields, name: str, most: int) -> list[str | list[int]]:
    """One text or list of token numbers, or several."""
    given = fields.take(name)
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        given = [given]
    if not isinstance(given, list) or not given:
        raise wrong(name, "a string, an array of token numbers, or an array of these", given)
    if len(given) > most:
        raise ApiError(f"'{name}' has {len(given)} elements, at most {most} are allowed", param=name)
    for index, prompt in enumerate(given):
        listed = isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)
        if not (listed or (isinstance(prompt, str) and prompt)):
            raise wrong(f"{name}[{index}]", "a string or an array of token numbers that is not empty", prompt)
    return given


def _config(fields: Fields, options: Options) -> GenerationConfig:
    """How tokens are chosen: as the request says, else as the server was started."""
    values = {**options.sampling, "context": options.context, "overflow": "stop"}
    for name in (*SAMPLING, "seed", "ignore_eos", "stop"):
        value = _stops(fields) if name == "stop" else fields.take(name)
        if value is None:
            continue
        if name == "ignore_eos" and not isinstance(value, bool):
            raise wrong(name, "a boolean", value)
        alone: dict[str, Any] = {name: value}
        try:
            GenerationConfig(**alone)
        except (TypeError, ValueError, OverflowError):
            raise wrong(name, _range(name), value) from None
        values[name] = value
    return GenerationConfig(**values)


def _range(name: str) -> str:
    """What `GenerationConfig` takes, for messages."""
    ranges = {
        "temperature": "a number of at least 0",
        "top_k": "an integer of at least 0",
        "seed": "an integer",
        "min_p": "a number from 0 to 1",
        "top_p": "a number above 0 and at most 1",
        "typical_p": "a number above 0 and at most 1",
        "repetition_penalty": "a number from 1e-6 to 1e6",
        "stop": "a string, or an array of strings, that are not empty",
    }
    return ranges.get(name, "a number from -1e6 to 1e6")


def _stops(fields: Fields) -> list[str] | None:
    given = fields.take("stop")
    stops = [given] if isinstance(given, str) else given
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise wrong("stop", _range("stop"), given)
    if len(stops) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stops):
        raise ApiError(f"'stop' may have {MOST_STOPS} texts of {LONGEST_STOP} characters at most", param="stop")
    return stops


def _usage(fields: Fields, stream: bool) -> bool:
    """Of ``stream_options``."""
    told = fields.object("stream_options")
    if told is None:
        return False
    if not stream:
        raise ApiError("'stream_options' needs stream to be true", param="stream_options")
    usage = told.boolean("include_usage")
    told.without_effect("include_obfuscation")
    told.finish()
    return usage


def _format(fields: Fields) -> None:
    """Of ``response_format``: text alone."""
    told = fields.object("response_format")
    if told is not None and (kind := told.take("type")) != "text":
        name = f"'{kind[:40]}'" if isinstance(kind, str) else "this one"
        raise ApiError(
            f"'response_format' may be of type text, {name} is not supported by this server; ask for JSON in a message "
            "and check what comes",
            param="response_format",
            code="unsupported_parameter",
        )
