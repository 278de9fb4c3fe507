"""Arrays of strings in a GGUF header; what lies about its counts and sizes is in test_damaged."""

import random
import struct
from pathlib import Path

import pytest

from bittorch.models.io import FormatError, gguf_header
from bittorch.models.io.gguf_header import read_gguf
from bittorch.models.io.mapped_file import MappedFile


def file_of(path: Path, strings: list[bytes], count: int | None = None) -> MappedFile:
    """With an array of strings and a number behind it."""
    array = struct.pack("<IIQ", 9, 8, len(strings) if count is None else count)
    array += b"".join(struct.pack("<Q", len(text)) + text for text in strings)
    entries = [(b"texts", array), (b"behind", struct.pack("<II", 4, 7))]
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries))
    path.write_bytes(data + b"".join(struct.pack("<Q", len(key)) + key + value for key, value in entries))
    return MappedFile(path)


def random_strings(rng: random.Random, count: int, rare: float) -> list[bytes]:
    """Short ones; with the probability ``rare`` others, and bytes of zero."""
    lengths = [rng.choice([0, 7, 255, 256, 257, 1000] if rng.random() < rare else [1, 2, 5, 9]) for _ in range(count)]
    return [bytes(rng.randrange(rng.random() >= rare, 256) for _ in range(length)) for length in lengths]


@pytest.mark.parametrize("window", [32, 5000, gguf_header._WINDOW])
@pytest.mark.parametrize("rare", [0, 0.001, 0.05])
def test_strings_are_read_as_they_stand(
    window: int, rare: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gguf_header, "_WINDOW", window)
    rng = random.Random(0)
    for count in (0, 1, 63, 64, 65, 1500):
        strings = random_strings(rng, count, rare)
        entries, _ = read_gguf(file_of(tmp_path / "x.gguf", strings))
        assert entries == {"texts": [text.decode("utf-8", "surrogateescape") for text in strings], "behind": 7}


@pytest.mark.parametrize("strings", [[b"abcdefgh"] * 100, [b"abcdefgh", bytes(8)] * 50], ids=["short", "zeros"])
def test_more_strings_than_there_are_is_refused(strings: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"announces \d+ bytes of 'texts'"):
        read_gguf(file_of(tmp_path / "x.gguf", strings, count=150))
