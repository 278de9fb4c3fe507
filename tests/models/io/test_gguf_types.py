"""Type ids that forks give another meaning: the bytes of the tensors tell, and what cannot be read is named."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from bittorch.models.io import CheckpointWarning, FormatError, open_checkpoint
from bittorch.models.io.gguf_types import Q2_0_FORK, REUSED, TYPES, GGUFType, block_bytes, meaning
from tests.models.io.gguf_files import dense_values, write
from tests.models.io.tiny import LLAMA

ROWS, COLUMNS = 512, 1024


def file_of(path: Path, type_id: int, sizes: list[int], shape: tuple[int, int] = (ROWS, COLUMNS)) -> Path:
    """A file whose tensors ``t0``, ``t1`` ... have this type, this shape, and so many bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    for number, size in enumerate(sizes):
        data = np.zeros(size, np.uint8)
        writer.add_tensor_info(f"t{number}", shape, np.dtype(np.float16), size, raw_dtype=type_id)
        writer.tensors[-1][f"t{number}"].tensor = data
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tl2(rows: int, columns: int, scale: bool) -> int:
    """Three weights in 5 bits, in the last 256 columns two in 4, by the program that writes it."""
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return -(-size // 32) * 32 + 32 if scale else size


# FIELD L11
@pytest.mark.parametrize(
    ("type_id", "size", "message"),
    [
        (39, tl2(ROWS, COLUMNS, True), "type id 39: TL2 of bitnet.cpp, whose order depends on the machine"),
        (39, tl2(ROWS, COLUMNS, False), "type id 39: TL2 of bitnet.cpp"),
        (39, 4096, "type id 39: TL2 of bitnet.cpp.*MXFP4 of ggml takes more bytes"),
        (42, tl2(ROWS, COLUMNS, True), "type id 42: TL2 of bitnet.cpp"),
        (40, ROWS * COLUMNS // 32 * 6, "type id 40: Q1_0 of PrismML's fork"),
        (38, ROWS * COLUMNS // 4 + 32, "type id 38: TL1 of bitnet.cpp"),
        (36 + 1, ROWS * COLUMNS, "type id 37: I8_S of bitnet.cpp"),
        (135, 4096, "type id 135: IQ2_BN of ik_llama.cpp"),
        (251, 4096, "type id 251: a type this version does not know"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_types_of_forks_are_refused_by_name(type_id: int, size: int, message: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=rf"x\.gguf: tensor 't0' has {message}"):
        open_checkpoint(file_of(tmp_path / "x.gguf", type_id, [size] * count))


@pytest.mark.parametrize("type_id", [39, 40, 42])
def test_ids_of_ggml_keep_their_meaning(type_id: int, tmp_path: Path) -> None:
    """With the bytes that ggml's own type takes, and with gaps behind the tensors."""
    kind = TYPES[type_id]
    size = block_bytes(kind, (ROWS, COLUMNS))
    assert size is not None
    for more in (0, 96):
        assert meaning(type_id, [((ROWS, COLUMNS), size + more)] * 2, 32) == kind
    with pytest.raises(FormatError, match=r"no tensor token_embd\.weight"):  # past the table of tensors
        open_checkpoint(file_of(tmp_path / "x.gguf", type_id, [size] * 2))


def test_one_meaning_for_all_tensors_of_a_file() -> None:
    """A tensor that fits one use alone decides; where none fits all, ggml's is checked by the reader."""
    fork = block_bytes(Q2_0_FORK, (1, 128))
    own = block_bytes(TYPES[42], (1, 128))
    assert (fork, own) == (34, 36)
    assert meaning(42, [((1, 128), 64), ((ROWS, 128), ROWS * 34)], 32) == Q2_0_FORK
    assert meaning(42, [((1, 128), 64), ((ROWS, 128), ROWS * 36)], 32) == TYPES[42]
    assert meaning(42, [((ROWS, 128), ROWS * 34), ((ROWS, 128), ROWS * 36)], 32) == TYPES[42]


@pytest.mark.parametrize(("kind", "size"), [(Q2_0_FORK, 34 * 2), (TYPES[42], 18 * 4), (TYPES[43], 42)])
def test_three_programs_have_an_id_42(kind: GGUFType, size: int) -> None:
    """Blocks of 128 by PrismML, of 64 by ggml, of 256 with one zero in four by AngelSlim's first files."""
    assert meaning(42, [((ROWS, COLUMNS), ROWS * COLUMNS // 256 * size)] * 2, 32) == kind


def test_a_file_of_prismml_is_packed(tmp_path: Path) -> None:
    values = dense_values(LLAMA, "TQ2_0")
    write(tmp_path / "x.gguf", "llama", LLAMA, "PQ2_0", values)
    with pytest.warns(CheckpointWarning, match=r"attn_q.weight is PQ2_0.*no prism.hadamard entry"):
        source = open_checkpoint(tmp_path / "x.gguf")
    with source:
        for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            assert source.info(name).ternary
            assert np.array_equal(source.dense(name).numpy(), values[name])


def test_every_reused_id_is_known() -> None:
    assert set(REUSED) <= set(TYPES)
