"""What a server is told when it starts."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import Any

from bittorch.models import GenerationConfig

LOCAL = "127.0.0.1"
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Places, limits and who may ask.

    Args:
        name: of the model, as requests say it.
        host, port: to listen on; port 0 takes a free one.
        api_key: what requests must bring; None for none, which only this machine's own addresses may have.
        slots: answers that are made at the same time.
        context: tokens of a prompt and its answer together.
        queue: answers that may wait for a slot; beyond them requests are refused.
        chunk: tokens of a prompt that are read at once.
        step_tokens: most tokens of prompts in a step, beside one of each answer.
        body_bytes, body_seconds: of a request, and for how long it may arrive.
        choices: most answers to a request: its prompts times n.
        seconds: from a request to the end of its answer.
        drain_seconds: for answers that are being made when the server is asked to end.
        origins: web pages of other addresses that may ask, as ``https://example.org``.
        sampling: fields of `bittorch.models.GenerationConfig` for requests that do not say them.

    Raises:
        ValueError: a value out of its range; a host of other machines without a key.
    """

    name: str
    host: str = LOCAL
    port: int = 8000
    api_key: str | None = dataclasses.field(default=None, repr=False)
    slots: int = 8
    context: int = 4096
    queue: int = 64
    chunk: int = 64
    step_tokens: int = 128
    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    choices: int = 8
    seconds: float = 600.0
    drain_seconds: float = 30.0
    origins: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"slots": 1, "context": 2, "queue": 0, "chunk": 1, "step_tokens": self.chunk, "body_bytes": 2}
        for name, low in {**least, "choices": 1, "port": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if self.port > 65535:
            raise ValueError(f"port must be at most 65535, got {self.port}")
        for name in ("body_seconds", "seconds", "drain_seconds"):
            if not 0 < getattr(self, name) < 1e9:
                raise ValueError(f"{name} must be above 0 and below 1e9, got {getattr(self, name)!r}")
        if not self.name:
            raise ValueError("name must have at least one character")
        key = self.api_key
        if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ValueError(
                "api_key must be ASCII text of at least one character, without control characters and without spaces "
                "at its ends, which a request's header cannot bring"
            )
        if not self.local and self.api_key is None:
            raise ValueError(f"host {self.host} can be reached by other machines, which needs an api_key")
        GenerationConfig(**self.sampling)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the host."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def places(self) -> int:
        """Answers that are made or wait."""
        return self.slots + self.queue
