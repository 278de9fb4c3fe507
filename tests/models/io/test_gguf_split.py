"""Models in several GGUF files, as gguf-py writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bittorch.models.decoder import tensor_shapes
from bittorch.models.io import FormatError, convert, open_checkpoint
from tests.models.io.gguf_files import add_entry, dense_values, write
from tests.models.io.tiny import LLAMA, assert_same

TENSORS = len(tensor_shapes(LLAMA))


def parts(path: Path, each: int = 8) -> list[Path]:
    """The files of one model, with up to ``each`` tensors in a part."""
    write(path / "x.gguf", "llama", LLAMA, "TQ2_0", dense_values(LLAMA, "TQ2_0"), parts=each)
    count = -(-TENSORS // each)
    found = sorted(path.glob("x-*.gguf"))
    assert [file.name for file in found] == [f"x-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    return found


# FIELD L10
def test_all_parts_are_read_from_any(tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf", "llama", LLAMA, "TQ2_0", dense_values(LLAMA, "TQ2_0"))
    for part in parts(tmp_path):
        with open_checkpoint(tmp_path / "whole.gguf") as whole, open_checkpoint(part) as found:
            assert_same(whole, found)
            assert found.config == whole.config
            assert found.tokenizer_source == whole.tokenizer_source


def test_parts_are_written_as_one(tmp_path: Path) -> None:
    convert(parts(tmp_path)[0], tmp_path / "y.gguf", to="gguf-tq1_0")
    assert not any(key.startswith("split.") for key in gguf.GGUFReader(tmp_path / "y.gguf").fields)
    with open_checkpoint(tmp_path / "y.gguf") as found, open_checkpoint(parts(tmp_path)[0]) as source:
        assert_same(source, found)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    files = parts(tmp_path)
    files[1].unlink()
    with pytest.raises(FormatError, match=r"x-00001-of-00003\.gguf lacks 1 of its 3 parts: x-00002-of-00003\.gguf"):
        open_checkpoint(files[0])
    files[2].unlink()
    with pytest.raises(FormatError, match=r"lacks 2 of its 3 parts: x-00002-of-00003\.gguf, x-00003-of-00003\.gguf"):
        open_checkpoint(files[0])


def test_parts_under_other_names(tmp_path: Path) -> None:
    files = parts(tmp_path)
    other = files[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"one of 3 parts \(split.count\); .* must end in -00001-of-00003\.gguf"):
        open_checkpoint(other)


def test_parts_in_another_order(tmp_path: Path) -> None:
    files = parts(tmp_path)
    files[1].rename(tmp_path / "kept")
    files[2].rename(files[1])
    (tmp_path / "kept").rename(files[2])
    with pytest.raises(FormatError, match=r"x-00002-of-00003\.gguf has split.no 2; by its name it must be 1"):
        open_checkpoint(files[0])


def written(path: Path, entries: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in entries.items():
        add_entry(writer, key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("last", "tensor", "message"),
    [
        ({"split.count": 3}, "more", "has the entry 'split.count' 3, the first part 2"),
        ({"split.tensors.count": 9}, "more", "has the entry 'split.tensors.count' 9, the first part 2"),
        ({"llama.block_count": 7}, "more", "has the entry 'llama.block_count' 7, the first part None"),
        ({"split.no": 0}, "more", "has split.no 0; by its name it must be 1"),
        ({}, "one", "both have tensor 'one'"),
    ],
)
def test_parts_that_contradict_each_other(last: dict[str, Any], tensor: str, message: str, tmp_path: Path) -> None:
    own = {"split.count": 2, "split.tensors.count": 2}
    values = np.ones(8, np.float32)
    written(tmp_path / "x-00001-of-00002.gguf", {**own, "split.no": 0}, {"one": values})
    written(tmp_path / "x-00002-of-00002.gguf", {**own, "split.no": 1, **last}, {tensor: values})
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"split.count": 2, "split.tensors.count": 3}, r"says split.tensors.count 3, but the 2 parts have 2"),
        ({"split.count": -1}, r"has split.count -1; it must be a number of files"),
        ({"split.count": 2**31}, r"it must be a number of files"),
    ],
)
def test_counts_that_are_wrong(entries: dict[str, int], message: str, tmp_path: Path) -> None:
    for number in range(2):
        path = tmp_path / f"x-{number + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in {**entries, "split.no": number}.items():
            writer.add_int64(key, value)
        writer.add_tensor(f"t{number}", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x-00001-of-00002.gguf")
