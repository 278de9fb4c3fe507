"""Conversations as the text that a chat model was trained on."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


class ChatTemplate:
    """A Jinja template, as checkpoints carry it, run in a sandbox: it cannot change anything or reach beyond its input.

    Args:
        source: of the template.
        special_tokens: names such as ``bos_token`` and their texts, which it may use.

    Raises:
        ValueError: a template with errors.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source, self.special_tokens = source, dict(special_tokens or {})
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=_extensions())
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(
                f"the chat template has an error in line {getattr(error, 'lineno', '?')}: {error}"
            ) from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **values: Any) -> str:
        """The text of a conversation.

        Args:
            messages: mappings with ``role`` (system, user, assistant, as the template knows them) and ``content``.
            add_generation_prompt: end where the assistant's answer begins.
            values: further names for the template; ``tools`` and ``documents`` are None unless given.

        Raises:
            ValueError: no message, a message without role or content, or what the template itself refuses.
        """
        if not messages:
            raise ValueError("there is no message")
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
                raise ValueError(f"message {index} must be a mapping with role and content, got {message!r:.100}")
        names = {"tools": None, "documents": None, **self.special_tokens, **values}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except Exception as error:  # it is a program, whose mistakes may be of any kind
            raise ValueError(f"the chat template refuses these messages: {error}") from None


def marked(value: Any, characters: Collection[str], mark: str) -> Any:
    """A message with a mark before each of these characters, wherever in it texts are."""
    if isinstance(value, str):
        return "".join(mark + character if character in characters else character for character in value)
    if isinstance(value, Mapping):
        return {key: marked(item, characters, mark) for key, item in value.items()}
    return [marked(item, characters, mark) for item in value] if isinstance(value, list | tuple) else value


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """With the options of `json.dumps`, and no escapes for HTML, unlike Jinja's own."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _extensions() -> list[Any]:
    """``break`` and ``continue``; and ``generation``, which marks what training is to learn and renders its body."""
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012, as the library has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return [loopcontrols, Generation]
