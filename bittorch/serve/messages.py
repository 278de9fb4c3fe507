"""The messages and tools of a chat request, as chat templates take them."""

from __future__ import annotations

import json
from typing import Any

from bittorch.serve.errors import ApiError
from bittorch.serve.fields import Fields, kind_of, no_number, wrong

# Roles of requests, and how chat templates call them.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MOST_MESSAGES, MOST_TOOLS = 4096, 128


def messages(fields: Fields) -> list[dict[str, Any]]:
    """The conversation. Raises ApiError."""
    given = fields.array("messages", MOST_MESSAGES)
    if not given:
        raise ApiError("'messages' must be an array of at least one message", param="messages")
    return [_message(value, f"messages[{index}]") for index, value in enumerate(given)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, "an object", value)
    fields = Fields(value, where)
    role = fields.text("role")
    if role not in ROLES:
        raise ApiError(f"'{where}.role' must be one of {', '.join(ROLES)}", param=f"{where}.role")
    message: dict[str, Any] = {"role": ROLES[role], "content": _content(fields.take("content"), f"{where}.content")}
    calls = fields.array("tool_calls", MOST_TOOLS)
    if calls is not None and role == "assistant":
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    elif calls is not None:
        raise ApiError(f"'{where}.tool_calls' belongs to messages of the assistant", param=f"{where}.tool_calls")
    if message["content"] is None and not calls:
        raise ApiError(f"'{where}.content' must be a string", param=f"{where}.content")
    for name in ("name", "tool_call_id"):
        if (text := fields.text(name)) is not None:
            message[name] = text
    fields.only({"refusal": (), "audio": (), "function_call": ()})
    fields.finish()
    return message


def _content(value: Any, where: str) -> str | None:
    """Text, of parts one behind the other."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, "a string or an array of parts", value)
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong(where, "an object", part)
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ApiError(f"'{where}' must be a part of type text: this model reads nothing else", param=where)
    text: str = part["text"]
    return text


def _call(value: Any, where: str) -> dict[str, Any]:
    """A call of a tool; its arguments, which requests have as JSON text, become an object."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f"'{where}' must have a function with a name", param=where)
    arguments = function.get("arguments", "{}")
    try:
        parsed = json.loads(arguments, parse_constant=no_number) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError(f"'{where}.function.arguments' must be a JSON object as text", param=where)
    return {"id": value.get("id"), "type": "function", "function": {"name": function["name"], "arguments": parsed}}


def tools(fields: Fields) -> list[dict[str, Any]] | None:
    """The tools that the model may ask for; None where there are none. Raises ApiError."""
    given = fields.array("tools", MOST_TOOLS)
    choice = fields.take("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise ApiError("'tool_choice' must be auto or none: this server does not force a call", param="tool_choice")
    for index, tool in enumerate(given or ()):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiError(
                f"'tools[{index}]' must be of type function, with a function that has a name, got {kind_of(tool)}",
                param=f"tools[{index}]",
            )
    return given if given and choice != "none" else None
