"""The fields of a request's body, each taken once and checked; what nobody takes is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bittorch.serve.errors import ApiError

DEEPEST = "the JSON is nested too deeply"


def parse(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises ApiError for what is no UTF-8, no JSON, no object, or cannot be text."""
    try:
        value = json.loads(data.decode(), parse_constant=no_number)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ApiError("the body has half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise ApiError(DEEPEST) from None
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {_place(error)}") from None
    if not isinstance(value, dict):
        raise ApiError(f"the body must be a JSON object, got {kind_of(value)}")
    return value


def _place(error: ValueError) -> str:
    """What is wrong and where, without text of the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "a number is out of range"


def no_number(name: str) -> None:
    """Raises ValueError for NaN and Infinity, which Python's parser takes and JSON has not."""
    raise ValueError(name)


def kind_of(value: Any) -> str:
    """The JSON type of a value, for messages."""
    kinds = ((bool, "a boolean"), (int, "an integer"), (float, "a number"), (str, "a string"), (list, "an array"))
    return "null" if value is None else next((text for kind, text in kinds if isinstance(value, kind)), "an object")


def wrong(param: str, wanted: str, value: Any) -> ApiError:
    """The error for a value that is not what is wanted; numbers and types are shown, texts are not."""
    shown = json.dumps(value) if isinstance(value, int | float) and abs(value) < 1e12 else kind_of(value)
    return ApiError(f"'{param}' must be {wanted}, got {shown}", param=param, code="invalid_value")


class Fields:
    """A JSON object from which fields are taken. A field that is null is one that is not there.

    Args:
        values: the object.
        where: its name in messages; empty for the body itself.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._where = where

    def name(self, field: str) -> str:
        """A field's name in messages."""
        return f"{self._where}.{field}" if self._where else field

    def take(self, field: str, default: Any = None) -> Any:
        """Any value."""
        return self._left.pop(field, default)

    def integer(self, field: str, default: int | None, low: int, high: int) -> int | None:
        """An integer of the range, ends included."""
        value = self.take(field, default)
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise wrong(self.name(field), f"an integer from {low} to {high}", value)
        return value

    def boolean(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(field, default)
        if not isinstance(value, bool):
            raise wrong(self.name(field), "a boolean", value)
        return value

    def text(self, field: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.take(field, default)
        if value is not None and not isinstance(value, str):
            raise wrong(self.name(field), "a string", value)
        return value

    def array(self, field: str, most: int) -> list[Any] | None:
        """An array of up to so many elements."""
        value = self.take(field)
        if value is not None and not isinstance(value, list):
            raise wrong(self.name(field), "an array", value)
        if value is not None and len(value) > most:
            raise ApiError(f"'{self.name(field)}' has {len(value)} elements, at most {most} are allowed", param=field)
        return value

    def object(self, field: str) -> Fields | None:
        """An object within."""
        value = self.take(field)
        if value is not None and not isinstance(value, dict):
            raise wrong(self.name(field), "an object", value)
        return None if value is None else Fields(value, self.name(field))

    def without_effect(self, *fields: str) -> None:
        """Takes fields that change no answer."""
        for field in fields:
            self.take(field)

    def only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Takes fields that this server does not have, where they ask for nothing."""
        for field, values in allowed.items():
            value = self.take(field)
            if value is not None and value not in values:
                raise ApiError(
                    f"'{self.name(field)}' is not supported by this server; leave it out",
                    param=self.name(field),
                    code="unsupported_parameter",
                )

    def finish(self) -> None:
        """Raises ApiError for a field that nobody took."""
        for field in self._left:
            raise ApiError(
                f"this server does not know the field '{self.name(field)[:100]}'; leave it out",
                param=self.name(field)[:100],
                code="unknown_parameter",
            )
