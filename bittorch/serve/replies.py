"""Answers as OpenAI's API writes them: whole, or in the chunks of a stream."""

from __future__ import annotations

import binascii
import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bittorch.serve.protocol import TextRequest
from bittorch.serve.scheduler import Progress, Told

Json = dict[str, Any]


@dataclasses.dataclass
class Choice:
    """One of the answers to a request, as far as it came."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    told: list[tuple[int, Told]] = dataclasses.field(default_factory=list)  # with where in the text each stands

    def add(self, progress: Progress) -> None:
        """Takes in a step."""
        if progress.told is not None:
            self.told.append((len(self.text), progress.told))
        self.text += progress.text
        self.tokens, self.finish_reason = progress.tokens, progress.finish_reason


class Reply:
    """The objects of one request, which share an id and a time.

    Args:
        request: what was asked.
        model: its name.
        prompt_tokens: of each prompt.
    """

    def __init__(self, request: TextRequest, model: str, prompt_tokens: Sequence[int]) -> None:
        self.request, self.prompt_tokens = request, sum(prompt_tokens)
        kind = "chat.completion" if request.chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + secrets.token_hex(12),
            "object": f"{kind}.chunk" if request.chat and request.stream else kind,
            "created": int(time.time()),
            "model": model,
        }
        self.choices = [Choice() for _ in range(len(prompt_tokens) * request.n)]
        self._begun: set[int] = set()

    def whole(self, kept: int) -> Json:
        """The answer to a request that is not streamed; ``kept`` tokens of prompts were not computed again."""
        choices = []
        for index, choice in enumerate(self.choices):
            text: Json = {"text": choice.text}
            if self.request.chat:
                text = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            logprobs = self._logprobs(choice.told)
            choices.append({"index": index, **text, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        return {**self._head, "choices": choices, "usage": self.usage(kept)}

    def chunks(self, index: int, progress: Progress) -> list[Json]:
        """What of a stream a step of one answer is."""
        choice = self.choices[index]
        at = len(choice.text)
        choice.add(progress)
        chunks = []
        if self.request.chat and index not in self._begun:
            self._begun.add(index)
            chunks.append(self._chunk(index, {"delta": {"role": "assistant", "content": ""}}))
        if progress.text or progress.told is not None:
            logprobs = self._logprobs([] if progress.told is None else [(at, progress.told)])
            text = {"delta": {"content": progress.text}} if self.request.chat else {"text": progress.text}
            chunks.append(self._chunk(index, text, logprobs))
        if progress.finish_reason is not None:
            none: Json = {"delta": {}} if self.request.chat else {"text": ""}
            chunks.append(self._chunk(index, none, None, progress.finish_reason))
        return chunks

    def last(self, kept: int) -> list[Json]:
        """What ends a stream."""
        return [{**self._head, "choices": [], "usage": self.usage(kept)}] if self.request.usage else []

    def usage(self, kept: int) -> Json:
        """Counts of tokens; end tokens are some."""
        new = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
            "prompt_tokens_details": {"cached_tokens": kept},
        }

    def _chunk(self, index: int, text: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": index, **text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self.request.usage else {})}

    def _logprobs(self, told: Sequence[tuple[int, Told]]) -> Json | None:
        if self.request.logprobs is None:
            return None
        if self.request.chat:
            return {"content": [_content(one) for _, one in told], "refusal": None}
        return {
            "tokens": [one.text for _, one in told],
            "token_logprobs": [one.logprob for _, one in told],
            "top_logprobs": [dict(reversed(one.likeliest)) for _, one in told],  # of equal texts the likelier stays
            "text_offset": [at for at, _ in told],
        }


def _content(told: Told) -> Json:
    top = [_entry(text, value) for text, value in told.likeliest]
    return {**_entry(told.text, told.logprob), "top_logprobs": top}


def _entry(text: str, logprob: float) -> Json:
    """A token; what is a part of a character has no bytes that its text would tell."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def model(name: str, created: int, context: int) -> Json:
    """An entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "bittorch", "max_model_len": context}


def vectors(name: str, made: Sequence[Tensor], tokens: int, base64: bool) -> Json:
    """The answer to a request for vectors."""
    data = []
    for index, vector in enumerate(made):
        numbers: Any = vector.tolist()
        if base64:
            numbers = binascii.b2a_base64(vector.numpy().astype("<f4").tobytes(), newline=False).decode()
        data.append({"object": "embedding", "index": index, "embedding": numbers})
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
