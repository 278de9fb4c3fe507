"""The ``tokenizer.model`` of SentencePiece: as much of its protocol buffer as a tokenizer needs.

A message is a run of fields, each a varint ``number << 3 | wire type`` and a value: a varint (0), 8 bytes (1), a
length and so many bytes (2), 4 bytes (5). Here: 1 pieces (1 text, 2 score, 3 type), 2 trainer (3 model type, 1
unigram, 2 bpe), 3 normalizer (2 rules, 3 dummy prefix, 4 remove extra whitespace).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from bittorch.models.vocabulary import NORMAL, Pieces

_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def read_model(data: bytes, what: str) -> Pieces:
    """The pieces of a model.

    Args:
        data: of the file.
        what: names the file in errors.

    Raises:
        ValueError: damaged data, or a model that is neither unigram nor bpe.
    """
    try:
        return _pieces(data)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{what} is no SentencePiece model, or is damaged: {error}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _pieces(data: bytes) -> Pieces:
    texts, scores, types = [], [], []
    kind, prefix, collapse, rules = 1, True, True, b""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            texts.append(_bytes(piece.get(1, b"")).decode())
            scores.append(struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))[0])
            types.append(_int(piece.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            kind = _int(dict(_fields(value)).get(3, 1))
        elif number == 3 and isinstance(value, bytes):
            found = dict(_fields(value))
            rules = _bytes(found.get(2, b""))
            prefix, collapse = bool(found.get(3, 1)), bool(found.get(4, 1))
    if not texts:
        raise ValueError("it has no pieces")
    if kind not in (1, 2):
        raise ValueError(f"its model type is {_TYPES.get(kind, kind)}; known are unigram and bpe")
    return Pieces(texts, scores, types, kind == 1, prefix, collapse, rules)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value: int | bytes
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size, at = (8 if wire == 1 else 4, at) if wire != 2 else _varint(data, at)
            if at + size > len(data):
                raise ValueError(f"a field of {size} bytes ends behind the data of {len(data)}")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field has wire type {wire}, which is not read")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than 10 bytes")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"a field holds the number {value} where bytes belong")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field holds bytes where a number belongs")
    return value
