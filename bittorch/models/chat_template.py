"""Conversations as the text that a chat model was trained on."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
OLDEST_JINJA = (3, 1, 6)
LONGEST_SOURCE = 1 << 17  # characters; templates in use have some thousand


class ChatTemplate:
    """A Jinja template, as checkpoints carry it, run in a sandbox: it cannot change anything or reach beyond its input.

    It is compiled when it is first used. What it does is counted, and ends with an error where it is out of proportion
    to the messages; see `bittorch.models.template_sandbox`.

    Args:
        source: of the template.
        special_tokens: names such as ``bos_token`` and their texts, which it may use.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source, self.special_tokens = source, dict(special_tokens or {})

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **values: Any) -> str:
        """The text of a conversation.

        Args:
            messages: mappings with ``role`` (system, user, assistant, as the template knows them) and ``content``,
                which a message of tool calls may lack.
            add_generation_prompt: end where the assistant's answer begins.
            values: further names for the template; ``tools`` and ``documents`` are None unless given.

        Raises:
            ImportError: jinja2 is missing, or older than 3.1.6, whose sandbox has a known hole.
            ValueError: no message, a message without a role, a template with errors, more work than the
                messages allow, or what the template itself refuses.
        """
        if not messages:
            raise ValueError("there is no message")
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:
                raise ValueError(f"message {index} must be a mapping with a role, got {message!r:.100}")
        template, limited, units = self._compiled
        names = {"tools": None, "documents": None, **self.special_tokens, **values}
        try:
            with limited(units([messages, names])):
                return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except Exception as error:  # it is a program, whose mistakes may be of any kind
            raise ValueError(f"the chat template refuses these messages: {error!s:.500}") from None

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Any, Any]:
        """The template; what limits its work; how much work there is for some values."""
        if len(self.source) > LONGEST_SOURCE:
            raise ValueError(
                f"the chat template has {len(self.source)} characters, at most {LONGEST_SOURCE} are allowed"
            )
        _check_jinja()
        from jinja2 import TemplateError

        from bittorch.models.template_sandbox import limited, units_for

        try:
            return _environment().template(self.source), limited, units_for
        except TemplateError as error:
            raise ValueError(
                f"the chat template has an error in line {getattr(error, 'lineno', '?')}: {error}"
            ) from None
        except (SyntaxError, RecursionError, MemoryError) as error:  # of Python, in what Jinja made of it
            raise ValueError(f"the chat template cannot be compiled: {error}") from None


def _check_jinja() -> None:
    try:
        version = importlib.metadata.version("jinja2")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError("chat templates need jinja2; install bittorch[lm]") from None
    numbers = [int(number) for number in re.findall(r"[0-9]+", version)[:3]]
    if numbers < [*OLDEST_JINJA]:
        oldest = ".".join(map(str, OLDEST_JINJA))
        raise ImportError(
            f"chat templates need jinja2 {oldest} or later, got {version}, whose sandbox has known holes; "
            f"pip install 'jinja2>={oldest}'"
        )


@functools.cache
def _environment() -> Any:
    from bittorch.models.template_sandbox import Environment

    environment = Environment()
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def marked(value: Any, characters: Collection[str], mark: str, keep: bool = True) -> Any:
    """A message with a mark before each of these characters, or in its place, wherever in it texts are."""
    if isinstance(value, str):
        return "".join(mark + character * keep if character in characters else character for character in value)
    if isinstance(value, Mapping):
        return {key: marked(item, characters, mark, keep) for key, item in value.items()}
    return [marked(item, characters, mark, keep) for item in value] if isinstance(value, list | tuple) else value


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
