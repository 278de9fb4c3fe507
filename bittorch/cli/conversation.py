"""What was said in a chat, on disk and in the context of a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bittorch.cli.answer import Message, system_message
from bittorch.cli.errors import CommandError
from bittorch.cli.files import read_text, write_whole

ROLES = ("user", "assistant")


@dataclasses.dataclass
class Conversation:
    """Turns of user and assistant, in that order, and what the assistant should be.

    Args:
        system: None for the template's own.
        messages: of the roles ``user`` and ``assistant``.
    """

    system: str | None = None
    messages: list[Message] = dataclasses.field(default_factory=list)

    def all(self) -> list[Message]:
        """The messages as a chat template takes them."""
        return [*system_message(self.system), *self.messages]

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def fit(self, encode: Callable[[list[Message]], list[int]], room: int) -> tuple[list[int], int]:
        """Drops the oldest turns until the rest fits.

        Args:
            encode: tokens of messages.
            room: tokens that fit.

        Returns:
            The tokens of what is left, and how many messages were dropped.

        Raises:
            CommandError: the last message alone is too long.
        """
        dropped = 0
        while len(tokens := encode(self.all())) > room:
            if len(self.messages) < 3:
                raise CommandError(
                    f"the message has {len(tokens)} tokens with what belongs to it, {room} fit; shorten it"
                )
            del self.messages[:2]
            dropped += 2
        return tokens, dropped

    def save(self, path: Path) -> None:
        """Writes JSON. Raises OSError."""
        text = json.dumps({"system": self.system, "messages": self.messages}, ensure_ascii=False, indent=1)
        write_whole(path, text.encode("utf-8", "backslashreplace") + b"\n")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Reads what `save` wrote. Raises OSError, and CommandError for anything else."""
        try:
            value = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{path} is not JSON: {error}") from None
        return cls(*_checked(value, path))


def _checked(value: Any, path: Path) -> tuple[str | None, list[Message]]:
    wanted = 'a saved conversation is {"system": text or null, "messages": [{"role": "user", "content": text}, ...]}'
    system, messages = (value.get("system"), value.get("messages")) if isinstance(value, dict) else (None, None)
    if not isinstance(messages, list) or not (system is None or isinstance(system, str)):
        raise CommandError(f"{path}: {wanted}")
    turns: list[Message] = []
    for index, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role != ROLES[index % 2] or not isinstance(content, str):
            raise CommandError(f"{path}: message {index} must be of role {ROLES[index % 2]} with a text; {wanted}")
        turns.append({"role": role, "content": content})
    return system, turns
