"""Conversations as the text that a chat model was trained on."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
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
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source, self.special_tokens = source, dict(special_tokens or {})
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
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
            values: further names for the template, such as ``tools``.

        Raises:
            ValueError: no message, a message without role or content, or what the template itself refuses.
        """
        from jinja2 import TemplateError

        if not messages:
            raise ValueError("there is no message")
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
                raise ValueError(f"message {index} must be a mapping with role and content, got {message!r:.100}")
        names = {**self.special_tokens, **values}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
