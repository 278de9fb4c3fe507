"""Files that are cut, flipped, lie, or lead elsewhere: an error that says so, at once, and nothing else."""

import contextlib
import json
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bittorch.models import Tokenizer
from bittorch.models.io import CheckpointWarning, FormatError, open_checkpoint, save
from bittorch.models.io.gguf_header import read_gguf
from bittorch.models.io.mapped_file import MappedFile
from bittorch.models.io.safetensors_header import read_header
from tests.models.io.tiny import model

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
UP = "model.layers.0.mlp.up_proj"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_file(
    tensors: list[bytes], entries: list[bytes] = (), data: bytes = b"", version: int = 3, counts: Any = None
) -> bytes:
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def read(tmp_path: Path, content: bytes, reader: Callable[[MappedFile], Any] = read_gguf) -> Any:
    path = tmp_path / "file"
    path.write_bytes(content)
    return reader(MappedFile(path))


LIES = {
    "does not begin": b"GGML" + bytes(100),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "version 9": gguf_file([], version=9),
    "announces 4 bytes of magic": b"GG",
    r"announces 1000000000000 tensors": gguf_file([], counts=(10**12, 0)),
    r"announces 18446744073709551615 entries": gguf_file([], counts=(0, 2**64 - 1)),
    "items of 'k'": gguf_file([], [text("k") + struct.pack("<IIQ", 9, 4, 2**62)]),
    "nested too deeply": gguf_file([], [text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + bytes(9)]),
    "unknown type 77": gguf_file([], [text("k") + struct.pack("<I", 77)]),
    "'k' twice": gguf_file([], [text("k") + struct.pack("<IB", 7, 1)] * 2),
    "general.alignment 33": gguf_file([], [text("general.alignment") + struct.pack("<II", 4, 33)]),
    "99 dimensions": gguf_file([text("t") + struct.pack("<I", 99) + bytes(900)]),
    "type id 38: TL1": gguf_file([entry("t", (256,), 38, 0)], data=bytes(512)),
    "type id 999: a type this version": gguf_file([entry("t", (256,), 999, 0)], data=bytes(512)),
    "takes 1024 bytes from offset 0": gguf_file([entry("t", (256,), 0, 0)], data=bytes(1023)),
    r"takes 4 bytes from offset 18446744073709551584": gguf_file([entry("t", (1,), 0, 2**64 - 32)], data=bytes(64)),
    "impossible shape": gguf_file([entry("t", (2**63, 2**63, 2**63), 0, 0)], data=bytes(64)),
    r"impossible shape \(0,": gguf_file([entry("t", (4, 0), 0, 0)], data=bytes(64)),
    "no multiple of the alignment": gguf_file([entry("t", (4,), 0, 4)], data=bytes(64)),
    "overlap": gguf_file([entry("t", (16,), 0, 0), entry("u", (16,), 0, 32)], data=bytes(96)),
    "twice in the table": gguf_file([entry("t", (8,), 0, 0), entry("t", (8,), 0, 32)], data=bytes(64)),
    "rows of 100 weights": gguf_file([entry("t", (100, 64), 35, 0)], data=bytes(9999)),
}


@pytest.mark.parametrize("message", LIES)
def test_lies_of_a_gguf_header(message: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError, match=message):
        read(tmp_path, LIES[message])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def st_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def st_tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ST_LIES = {
    "too few for the header": b"1234",
    "announce a header of 9223372036854775808": st_file(b"{}", length=2**63),
    "announce a header of 99": st_file(b"{}", length=99),
    "no JSON": st_file(b"{nonsense"),
    "must be a JSON object": st_file([]),
    "'a' twice": st_file(b'{"a": 1, "a": 2}'),
    "no JSON: maximum recursion|no JSON: Recursion|no JSON": st_file(b"[" * 100_000),
    "must map strings to strings": st_file({"__metadata__": {"a": 1}}),
    "must have dtype, shape": st_file({"a": {"dtype": "F32"}}),
    "dtype 'F128'": st_file({"a": st_tensor("F128")}, bytes(8)),
    "lists of sizes": st_file({"a": st_tensor(shape=[-1])}, bytes(8)),
    r"lists of sizes, got \[2.5\]": st_file({"a": st_tensor(shape=[2.5])}, bytes(8)),
    "truncated": st_file({"a": st_tensor(offsets=[0, 80])}, bytes(8)),
    r"lies at bytes \[8, 0\]": st_file({"a": st_tensor(offsets=[8, 0])}, bytes(8)),
    "does not fill its 8 bytes": st_file({"a": st_tensor(shape=[3])}, bytes(8)),
    "overlaps": st_file({"a": st_tensor(), "b": st_tensor(offsets=[4, 12])}, bytes(12)),
    "leaves a gap": st_file({"a": st_tensor(), "b": st_tensor(offsets=[12, 20])}, bytes(20)),
    "has 27 bytes, its tensors end": st_file({}, bytes(17)),
}


# FIELD R6: what a quadratic reader would take minutes for.
ST_LIES["'49999' twice"] = st_file(b"{" + b"".join(b'"%d": 1, ' % n for n in range(50_000)) + b'"49999": 1}')
ST_LIES["200000 dimensions"] = st_file({"a": st_tensor(shape=[2**62] * 200_000)}, bytes(8))


@pytest.mark.parametrize("message", ST_LIES)
def test_lies_of_a_safetensors_header(message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        read(tmp_path, ST_LIES[message], read_header)


def attempt(path: Path) -> None:
    """Reads everything; what is wrong must be a FormatError."""
    with contextlib.suppress(FormatError), open_checkpoint(path) as found:
        for name in found.names:
            found.packed(name) if found.info(name).ternary else found.dense(name, torch.float32)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    for to in ("gguf-tq2_0", "gguf-tq1_0", "gguf-q2_0", "gguf-i2_s", "bittorch", "bitnet", "compressed-tensors"):
        save(model(tokenizer={"tokenizer.ggml.tokens": ["a", "b"]}), folder / to, to=to)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@FUZZ
@given(st.data())
def test_flipped_and_cut_gguf(good: dict[str, Path], scratch: Path, data: st.DataObject) -> None:
    """Bytes of the header changed, to anything or to large numbers; or the file cut anywhere."""
    content = bytearray(
        good[data.draw(st.sampled_from(["gguf-tq2_0", "gguf-tq1_0", "gguf-i2_s", "gguf-q2_0"]))].read_bytes()
    )
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(4000, len(content))))
        patch = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\x7f" * 4, bytes(8)]))
        )
        content[at : at + len(patch)] = patch
    path = scratch / "fuzz.gguf"
    path.write_bytes(content)
    attempt(path)


@FUZZ
@given(st.binary(max_size=300))
@example(b"")
def test_arbitrary_bytes(scratch: Path, content: bytes) -> None:
    for prefix in (b"", b"GGUF" + struct.pack("<I", 3)):
        for reader in (read_gguf, read_header):
            path = scratch / "any"
            path.write_bytes(prefix + content)
            try:
                reader(MappedFile(path))
            except FormatError:
                continue


@FUZZ
@given(st.data())
def test_flipped_and_cut_directories(good: dict[str, Path], scratch: Path, data: st.DataObject) -> None:
    source = good[data.draw(st.sampled_from(["bittorch", "bitnet", "compressed-tensors"]))]
    folder = scratch / "fuzzed"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        content = bytearray((source / name).read_bytes())
        if data.draw(st.integers(0, 3)) == 0:
            del content[data.draw(st.integers(0, len(content))) :]
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, min(5000, len(content))))
            patch = data.draw(
                st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"9", b"null", b'"', b"-1", b"e9"]))
            )
            content[at : at + len(patch)] = patch
        (folder / name).write_bytes(content)
    attempt(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(st.data())
def test_any_value_in_config_json(good: dict[str, Path], scratch: Path, data: st.DataObject) -> None:
    source = good[data.draw(st.sampled_from(["bittorch", "bitnet", "compressed-tensors"]))]
    folder = scratch / "configured"
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    values = json.loads((source / "config.json").read_text())
    target = values.get("quantization_config", values) if data.draw(st.booleans()) else values
    key = data.draw(st.sampled_from(sorted(target)))
    target[key] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(values))
    attempt(folder)


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    with open_checkpoint(folder) as found:
        metadata = dict(found.metadata["safetensors"])
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    change(state)
    save_file(state, folder / "model.safetensors", metadata=metadata)


def put(key: str, value: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[key] = value if isinstance(value, torch.Tensor) else torch.full_like(state[key], value)

    return change


DAMAGE: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = [
    ("bittorch", put(f"{UP}.weight_packed", 0xFF), "reserved code 11 at row 0"),
    ("bittorch", put(f"{UP}.scale", float("nan")), "not finite"),
    ("bittorch", put(f"{UP}.scale", torch.ones(3)), r"scales \(1,\), \(512,\)"),
    ("bittorch", put(f"{UP}.scale", torch.ones(1).half()), "got F16"),
    ("bittorch", lambda state: state.pop(f"{UP}.scale"), f"lacks {UP}.scale"),
    ("bittorch", lambda state: state.pop("model.norm.weight"), "lacks 1 tensors.*model.norm.weight"),
    ("bittorch", put("model.extra", torch.ones(3)), "1 tensors that no part of the model uses: model.extra"),
    ("bittorch", put("model.norm.weight", torch.ones(256).long()), r"norm\.weight must hold floats .* of type I64"),
    ("bittorch", put("model.norm.weight", torch.ones(3)), r"must be \(256,\) by the configuration, got \(3,\)"),
    ("bitnet", put(f"{UP}.weight", 0xFF), "code 11"),
    ("bitnet", put(f"{UP}.weight_scale", float("inf")), "weight_scale of .* is inf"),
    ("bitnet", lambda state: state.pop(f"{UP}.weight_scale"), "but no .*up_proj.weight_scale"),
    ("bitnet", lambda state: state.pop(f"{UP}.weight"), f"but no {UP}.weight"),
    ("compressed-tensors", put(f"{UP}.weight_packed", 0), "code 00"),
    ("compressed-tensors", put(f"{UP}.weight_scale", float("nan")), "not finite"),
    ("compressed-tensors", put(f"{UP}.weight_shape", torch.tensor([512, 999])), "must be I32"),
    ("compressed-tensors", lambda state: state.pop(f"{UP}.weight_shape"), f"but no {UP}.weight_shape"),
    ("compressed-tensors", put(f"{UP}.weight_zero_point", torch.ones(3)), "zero_point are not ternary"),
]


@pytest.mark.parametrize(("to", "change", "message"), DAMAGE, ids=[f"{to} {message}" for to, _, message in DAMAGE])
def test_damaged_tensors(to: str, change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "x", to=to)
    damage(tmp_path / "x", change)
    with pytest.raises(FormatError, match=message), open_checkpoint(tmp_path / "x") as found:
        found.packed(f"{UP}.weight")


@pytest.mark.parametrize(
    ("to", "offset", "patch", "message"),
    [
        ("gguf-tq2_0", 0, b"\xff", "code 11"),
        ("gguf-tq2_0", 64, b"\x00\x7e", "not finite"),
        ("gguf-tq1_0", 52, b"\x00\x7c", "not finite"),
        ("gguf-q2_0", 0, b"\xff\xff", "not finite"),
        ("gguf-i2_s", 0, b"\x03", "code 11"),
        ("gguf-i2_s", 512 * 64, np.float32([np.nan]).tobytes(), "not finite"),
    ],
)
def test_damaged_blocks(to: str, offset: int, patch: bytes, message: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "x", to=to)
    with open_checkpoint(tmp_path / "x") as found:
        at = found.stored(f"{UP}.weight").stored.offset + offset
    content = bytearray((tmp_path / "x").read_bytes())
    content[at : at + len(patch)] = patch
    (tmp_path / "x").write_bytes(content)
    with open_checkpoint(tmp_path / "x") as found, pytest.raises(FormatError, match=message):
        found.packed(f"{UP}.weight")


def in_blocks(flat: int, size: int, span: int) -> tuple[int, int]:
    """Where a block of ``size`` bytes for ``span`` weights begins, and the weight's number in it."""
    return flat // span * size, flat % span


def tq2_0(flat: int) -> tuple[int, int, int]:
    begin, e = in_blocks(flat, 66, 256)
    return begin + 32 * (e // 128) + e % 32, 2 * (e % 128 // 32), 3


def q2_0(flat: int) -> tuple[int, int, int]:
    begin, e = in_blocks(flat, 18, 64)
    return begin + 2 + e // 4, 2 * (e % 4), 3


def i2_s(flat: int) -> tuple[int, int, int]:
    begin, e = in_blocks(flat, 32, 128)
    return begin + e % 32, 6 - 2 * (e // 32), 3


def bitnet(flat: int) -> tuple[int, int, int]:
    row, column = divmod(flat, 256)
    return row % 128 * 256 + column, 2 * (row // 128), 3


def int32(flat: int) -> tuple[int, int, int]:
    return flat // 4, 2 * (flat % 4), 0


# FIELD L14
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 130), (300, 77), (511, 255)])
@pytest.mark.parametrize(
    ("to", "place"),
    [
        ("gguf-tq2_0", tq2_0),
        ("gguf-q2_0", q2_0),
        ("gguf-i2_s", i2_s),
        ("bitnet", bitnet),
        ("compressed-tensors", int32),
        ("bittorch", lambda flat: (flat // 4, 2 * (flat % 4), 3)),
    ],
)
def test_the_place_of_a_reserved_code_is_named(
    to: str, place: Callable[[int], tuple[int, int, int]], row: int, column: int, tmp_path: Path
) -> None:
    """The bits of one weight of (512, 256), by the definition of each layout, and what the message says."""
    path = tmp_path / "x"
    save(model(), path, to=to)
    file = path / "model.safetensors" if path.is_dir() else path
    with open_checkpoint(path) as found:
        stored = found.stored(f"{UP}.weight")
        begin = (stored.stored if hasattr(stored, "stored") else stored.weight).offset
    byte, shift, code = place(row * 256 + column)
    content = bytearray(file.read_bytes())
    content[begin + byte] = (content[begin + byte] & ~(3 << shift)) | code << shift
    file.write_bytes(content)
    with open_checkpoint(path) as found, pytest.raises(FormatError) as caught:
        found.packed(f"{UP}.weight")
    message = str(caught.value)
    assert str(file) in message
    assert f"{UP}.weight" in message
    assert f"at row {row}, column {column};" in message


# FIELD L14
@pytest.mark.parametrize(
    ("to", "offset", "patch", "message"),
    [
        ("gguf-tq1_0", 3 * 54 + 10, b"\x01", "holds byte 1, which no five trits make at row 3, column 10;"),
        ("gguf-tq1_0", 3 * 54 + 40, b"\xff", None),
        ("gguf-tq1_0", 3 * 54 + 52, b"\x00\x7e", "not finite, nan, at row 3, columns 0 to 255;"),
        ("gguf-q2_0", 7 * 18, b"\x00\x7c", "not finite, inf, at row 1, columns 192 to 255;"),  # its first code is 1
        ("gguf-i2_s", 512 * 64, np.float32([np.nan]).tobytes(), "not finite, nan;"),
    ],
)
def test_the_place_of_a_bad_block_is_named(
    to: str, offset: int, patch: bytes, message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    save(model(), path, to=to)
    with open_checkpoint(path) as found:
        at = found.stored(f"{UP}.weight").stored.offset + offset
    content = bytearray(path.read_bytes())
    content[at : at + len(patch)] = patch
    path.write_bytes(content)
    with open_checkpoint(path) as found:
        if message is None:  # 255 is five times 2
            assert found.packed(f"{UP}.weight")
            return
        for read in (found.packed, found.dense):
            with pytest.raises(FormatError, match=f"{path}: {UP}.weight .*{message}"):
                read(f"{UP}.weight")


def test_the_place_of_a_bad_scale_in_a_directory_is_named(tmp_path: Path) -> None:  # FIELD L14
    scale = torch.ones(512, 4)
    scale[7, 2] = float("nan")
    save(model(scale="group64"), tmp_path / "x", to="bittorch")
    damage(tmp_path / "x", put(f"{UP}.scale", scale))
    message = "model.safetensors: .*up_proj.weight .*not finite, nan at row 7, columns 128 to 191;"
    with open_checkpoint(tmp_path / "x") as found, pytest.raises(FormatError, match=message):
        found.packed(f"{UP}.weight")


def test_the_place_of_a_bad_byte_of_base3_is_named(tmp_path: Path) -> None:  # FIELD L14
    save(model(), tmp_path / "x", to="bittorch-base3")

    def change(state: dict[str, torch.Tensor]) -> None:
        state[f"{UP}.weight_base3"][7, 11] = 250

    damage(tmp_path / "x", change)
    message = "model.safetensors: .*up_proj.weight holds byte 250, which no five trits make .* at row 7, column 55;"
    with open_checkpoint(tmp_path / "x") as found, pytest.raises(FormatError, match=message):
        found.packed(f"{UP}.weight")


def test_the_length_of_a_string_is_named(tmp_path: Path) -> None:  # FIELD L14
    save(model(), tmp_path / "x", to="gguf-tq2_0")
    content = bytearray((tmp_path / "x").read_bytes())
    begin = content.index(b"general.architecture") - 8
    content[begin : begin + 8] = (2**62).to_bytes(8, "little")
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=f"announces {2**62} bytes of a key at byte {begin + 8}, but ends at"):
        open_checkpoint(tmp_path / "x")


def shards(folder: Path, weight_map: Any, *present: str) -> Path:
    save(model(), folder, to="bittorch")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    for name in present:
        (folder / name).write_bytes((folder / "one.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "a/one.safetensors", "..", "", 5, None])
def test_an_index_that_leads_outside(name: Any, tmp_path: Path) -> None:
    folder = shards(tmp_path / "x", {"model.norm.weight": name})
    with pytest.raises(FormatError, match="same directory"):
        open_checkpoint(folder)


def test_shards_that_are_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"lacks 1 of its 2 shards: two.safetensors"):
        open_checkpoint(shards(tmp_path / "a", {"x": "one.safetensors", "y": "two.safetensors"}))
    with pytest.raises(FormatError, match="both have tensor"):
        open_checkpoint(shards(tmp_path / "b", {"x": "one.safetensors", "y": "two.safetensors"}, "two.safetensors"))
    with pytest.raises(FormatError, match=r"places 1 tensors in shards that do not have them, first 'x'"):
        open_checkpoint(shards(tmp_path / "c", {"x": "one.safetensors"}))
    with pytest.raises(FormatError, match="no weight_map"):
        open_checkpoint(shards(tmp_path / "d", []))
    (tmp_path / "e").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        open_checkpoint(tmp_path / "e")
    (tmp_path / "e" / "snapshots" / "1f").mkdir(parents=True)
    (tmp_path / "e" / "snapshots" / "1f" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no config.json; name .*/e/snapshots/1f$"):
        open_checkpoint(tmp_path / "e")
    (tmp_path / "e" / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"neither model\.safetensors"):
        open_checkpoint(tmp_path / "e")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; give the path .*: nothing is downloaded"):
        open_checkpoint(tmp_path / "f")


def test_names_that_the_model_does_not_have_are_told(tmp_path: Path) -> None:
    """As torch.compile puts a prefix before them: what is there tells why everything is missing."""
    save(model(), tmp_path / "x", to="compressed-tensors")
    state = {f"_orig_mod.{name}": value for name, value in load_file(tmp_path / "x" / "model.safetensors").items()}
    save_file(state, tmp_path / "x" / "model.safetensors")
    with pytest.raises(FormatError, match=r"lacks \d+ tensors .*; it has \d+ others, first '_orig_mod\.model"):
        open_checkpoint(tmp_path / "x")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model", "x.gguf"])
def test_pointers_of_git_lfs_are_named(name: str, tmp_path: Path) -> None:
    """A repository that was cloned without Git LFS has these in place of large files."""
    save(model(), tmp_path / "x", to="bittorch")
    (tmp_path / "x" / name).write_text(POINTER)
    read: Callable[[Path], object] = open_checkpoint
    if name.startswith("tokenizer"):
        pytest.importorskip("tokenizers")
        read = Tokenizer.from_source
    with pytest.raises(FormatError, match=rf"x/{name} is a pointer of Git LFS.* Run git lfs pull"):
        read(tmp_path / "x" / name if name == "x.gguf" else tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, relu2, gelu_tanh, got 'gelu'"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer"),
        # FIELD L14
        ({"num_attention_heads": 0}, r"config\.json: num_attention_heads must be a positive integer, got 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads must be a positive integer, got 0"),
        ({"hidden_size": "wide", "head_dim": None}, "hidden_size must be a positive integer, got 'wide'"),
        # FIELD R14, R15
        ({"quantization_config": "bitnet"}, "quantization_config must be an object with quant_method, got 'bitnet'"),
        ({"rms_norm_eps": 10**30}, "rms_norm_eps must be above 0 and below 1"),
        ({"num_key_value_heads": 3}, "num_heads=4 is no multiple of num_kv_heads=3"),
        ({"num_hidden_layers": 3}, "lacks 11 tensors"),
        ({"num_hidden_layers": 2**31 - 1}, "too few for the 2147483647 layers"),
        ({"model_type": None, "architectures": [1]}, r"model_type None \(architectures \[1\]\)"),
        ({"eos_token_id": ["a"]}, "eos_token_ids must be numbers of tokens, got 'a'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "llama3 must have a positive low_freq_factor"),
        ({"rope_parameters": {"rope_type": "factors", "factors": [1.0]}}, r"must be 32 numbers, got shape \(1,\)"),
        ({"rope_parameters": 5}, r"config\.json: rope_parameters must be an object, got 5"),
        ({"rope_parameters": {"rope_theta": "x"}}, r"config\.json: rope_theta must be a number, got 'x'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "bitnet has one rotation for all layers"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta must be positive and finite"),
        ({"rms_norm_eps": "1e-6"}, r"config\.json: rms_norm_eps must be a number, got '1e-6'"),
        ({"tie_word_embeddings": "false"}, r"config\.json: tie_word_embeddings must be true or false, got 'false'"),
        ({"hidden_act": []}, r"config\.json: hidden_act must be a text, got \[\]"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5 is not read"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "other"}}, "linear_class 'other'"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm"),
        ({"quantization_config": {"quant_method": "bittorch"}}, "no 'bittorch' metadata"),
    ],
)
def test_wrong_configurations(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(model(), tmp_path / "x", to="bitnet")
    path = tmp_path / "x" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=message):
        open_checkpoint(tmp_path / "x")


def scheme(**inputs: Any) -> dict[str, Any]:
    known = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return {"input_activations": known | inputs}


def configured(path: Path, group: dict[str, Any], **whole: Any) -> Path:
    """A directory of compressed-tensors whose scheme has these entries."""
    save(model(), path, to="compressed-tensors")
    values = json.loads((path / "config.json").read_text())
    values["bittorch"] = None  # else our own note says how many bits
    values["quantization_config"]["config_groups"]["group_0"] |= group
    values["quantization_config"] |= whole
    (path / "config.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("group", "whole", "message"),
    [
        (scheme(type="float"), {}, r"group_0\.input_activations\.type is 'float'.*supported: 'int'"),
        (scheme(dynamic=False), {}, r"group_0\.input_activations\.dynamic is False.*supported: True"),
        (scheme(dynamic="local"), {}, "dynamic is 'local'"),
        (scheme(dynamic=None), {}, "dynamic is False"),
        (scheme(num_bits=4), {}, "num_bits is 4.*supported: 8"),
        (scheme(symmetric=False), {}, "symmetric is False"),
        (scheme(strategy="tensor"), {}, "strategy is 'tensor'.*supported: 'token'"),
        ({"input_activations": "int8"}, {}, "input_activations is 'int8'.*null or an object"),
        ({"output_activations": scheme()}, {}, "output_activations is"),
        ({}, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is .*supported: null"),
        ({}, {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config is"),
        ({}, {"sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config is .*'dense'"),
    ],
)
def test_schemes_that_would_be_run_otherwise(
    group: dict[str, Any], whole: dict[str, Any], message: str, tmp_path: Path
) -> None:
    # FIELD L12
    with pytest.raises(FormatError, match=message):
        open_checkpoint(configured(tmp_path / "x", group, **whole))


def test_schemes_that_are_run(tmp_path: Path) -> None:  # FIELD L12
    with open_checkpoint(configured(tmp_path / "a", {})) as found:
        assert found.config.activation_bits is None
    with open_checkpoint(configured(tmp_path / "b", scheme())) as found:
        assert found.config.activation_bits == 8
    short = {"input_activations": {"num_bits": 8, "dynamic": True}}
    with open_checkpoint(configured(tmp_path / "c", short, sparsity_config={}, transform_config={})) as found:
        assert found.config.activation_bits == 8
    folder = configured(tmp_path / "d", scheme())
    values = json.loads((folder / "config.json").read_text())
    groups = values["quantization_config"]["config_groups"]
    groups["group_1"] = groups["group_0"] | {"input_activations": None}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(FormatError, match=r"input_activations is \{'group_0': 8, 'group_1': None\}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [[], {}, 5, None])
def test_a_layout_of_another_type(value: Any, tmp_path: Path) -> None:  # FIELD R14
    save(model(), tmp_path / "x", to="bittorch")
    path = tmp_path / "x" / "model.safetensors"
    with open_checkpoint(tmp_path / "x") as found:
        header = json.loads(found.metadata["safetensors"]["bittorch"])
    save_file(load_file(path), path, metadata={"bittorch": json.dumps(header | {"layout": value})})
    with pytest.raises(FormatError, match="layout"):
        open_checkpoint(tmp_path / "x")


def test_a_folder_with_a_pickle_alone(tmp_path: Path) -> None:  # FIELD L14
    save(model(), tmp_path / "x", to="bittorch")
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin alone: pickle.*save_pretrained"):
        open_checkpoint(tmp_path / "x")


def test_matrices_of_zeros_are_told_of_once(tmp_path: Path) -> None:  # FIELD L14
    save(model(), tmp_path / "x", to="bittorch")
    damage(tmp_path / "x", put(f"{UP}.weight_packed", 0))
    damage(tmp_path / "x", put("model.embed_tokens.weight", -0.0))
    with open_checkpoint(tmp_path / "x") as found:
        with pytest.warns(CheckpointWarning, match=rf"x: {UP}\.weight \(512, 256\) is all zeros"):
            found.packed(f"{UP}.weight")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.dense("model.embed_tokens.weight")
    with open_checkpoint(tmp_path / "x") as found, pytest.warns(CheckpointWarning, match="embed_tokens"):
        found.dense("model.embed_tokens.weight")
