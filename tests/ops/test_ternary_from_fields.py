from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.models.io import codecs
from bittorch.ops import reference
from tests import helpers

# Weights of a block and its bytes; rows of data of 1 byte a column hold four rows.
SIZES = {
    "i2_s_128x32": (128, 32),
    "i2_s_64x16": (64, 16),
    "i2_s_rows4": (1, 1),
    "bitnet": (1, 1),
    "tq2_0": (256, 66),
}
FOUR_ROWS = ("i2_s_rows4", "bitnet")


def _room(data: Tensor, k: int, layout: str) -> Tensor:
    rows = 4 * len(data) if layout in FOUR_ROWS else len(data)
    return torch.full((rows, (k + 3) // 4), 0xA5, dtype=torch.uint8)


def _both(data: Tensor, k: int, layout: str) -> tuple[Tensor, Tensor]:
    """What the op writes and returns, which is what the reference writes and returns."""
    found, expected = _room(data, k, layout), _room(data, k, layout)
    flags = ops.ternary_from_fields(data, k, layout, found)
    assert torch.equal(flags, reference.ternary_from_fields(data.contiguous(), k, layout, expected))
    assert torch.equal(found, expected)
    return found, flags


def _every_byte(layout: str, blocks: int) -> Tensor:
    """256 rows, in which every place of a block has every byte once."""
    return (torch.arange(256)[:, None] + 7 * torch.arange(blocks * SIZES[layout][1])).to(torch.uint8)


@pytest.mark.parametrize("layout", SIZES)
def test_every_byte_in_every_place_equals_the_reference(layout: str) -> None:
    for blocks in (1, 3, 130):
        packed, flags = _both(_every_byte(layout, blocks), blocks * SIZES[layout][0], layout)
        found = (ops.ternary_check(packed, 4 * packed.shape[1]) >= 0).any()
        assert bool(flags.any()) == bool(found)


@pytest.mark.parametrize("layout", SIZES)
def test_a_field_3_is_told_by_its_row(layout: str) -> None:
    """A row that has one among legal fields, in its first byte, its last, and where a block has a scale."""
    weights, size = SIZES[layout]
    blocks = 3 if weights > 1 else 75
    data = torch.full((5, blocks * size), 0b10_00_01_10, dtype=torch.uint8)
    for row, place in {1: 0, 3: blocks * size - (3 if layout == "tq2_0" else 1)}.items():
        data[row, place] |= 0b11_00
    if layout == "tq2_0":
        data[2, 65] = 0xFF
    assert _both(data, blocks * weights, layout)[1].tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("layout", FOUR_ROWS)
def test_rows_of_edge_sizes_equal_the_reference(layout: str) -> None:
    for k in (*helpers.EDGE_SIZES, 0, 2, 3, 5, 31, 33, 34, 35, 65, 100):
        _both(torch.randint(0, 256, (3, k), generator=helpers.seeded(k), dtype=torch.uint8), k, layout)
        _both(torch.empty(0, k, dtype=torch.uint8), k, layout)


def test_tq2_0_equals_gguf_py() -> None:
    codes = np.random.default_rng(5).integers(-1, 2, (6, 512)).astype(np.float32)
    stored = gguf.quants.quantize(codes, gguf.GGMLQuantizationType.TQ2_0)
    packed = torch.empty(6, 128, dtype=torch.uint8)
    assert not ops.ternary_from_fields(torch.from_numpy(stored), 512, "tq2_0", packed).any()
    assert np.array_equal(ops.ternary_unpack(packed, None, 512, torch.float32).numpy(), codes)


def test_golden_bytes() -> None:
    """Byte 0 holds weights 0, 32, 64 and 96 from the top: + - 0 +; row by row the same are four rows."""
    data = torch.full((1, 32), 0b01_01_01_01, dtype=torch.uint8)
    data[0, 0] = 0b10_00_01_10
    packed = torch.empty(1, 32, dtype=torch.uint8)
    ops.ternary_from_fields(data, 128, "i2_s_128x32", packed)
    assert packed.view(4, 8)[:, 0].tolist() == [0b01, 0b10, 0b00, 0b01]
    rows = torch.empty(4, 1, dtype=torch.uint8)
    ops.ternary_from_fields(data[:, :1], 1, "i2_s_rows4", rows)
    assert rows.flatten().tolist() == [0b01, 0b10, 0b00, 0b01]
    ops.ternary_from_fields(data[:, :1], 1, "bitnet", rows)
    assert rows.flatten().tolist() == [0b01, 0b00, 0b10, 0b01]


def test_the_inverse_of_transformers_order() -> None:
    codes = np.random.default_rng(6).integers(-1, 2, (12, 37)).astype(np.int8)
    packed = torch.empty(12, 10, dtype=torch.uint8)
    ops.ternary_from_fields(torch.from_numpy(codecs.encode_bitnet(codes)), 37, "bitnet", packed)
    assert torch.equal(packed, helpers.pack(torch.from_numpy(codes)))


@pytest.mark.parametrize("arrange", [*helpers.LAYOUTS.values(), lambda t: _misaligned(t)])
@pytest.mark.parametrize("layout", SIZES)
def test_data_anywhere_in_memory(layout: str, arrange: Callable[[Tensor], Tensor]) -> None:
    _both(arrange(_every_byte(layout, 2)), 2 * SIZES[layout][0], layout)


def _misaligned(t: Tensor) -> Tensor:
    return torch.cat([torch.zeros(3, dtype=torch.uint8), t.flatten()])[3:].view(t.shape)


@pytest.mark.parametrize("layout", SIZES)
def test_two_threads_write_between_other_columns(layout: str) -> None:
    weights = SIZES[layout][0]
    blocks = 4096 // weights
    data, k = _every_byte(layout, blocks), blocks * weights
    one, flags = _both(data, k, layout)
    wide = torch.full((len(one), one.shape[1] + 7), 0xA5, dtype=torch.uint8)
    version = wide._version
    with helpers.threads(2):
        assert torch.equal(ops.ternary_from_fields(data, k, layout, wide[:, 3:-4]), flags)
    assert torch.equal(wide[:, 3:-4], one)
    assert (wide[:, :3] == 0xA5).all()
    assert (wide[:, -4:] == 0xA5).all()
    assert wide._version > version


def test_refuses_other_layouts_shapes_and_dtypes() -> None:
    data, out, wide = (torch.zeros(2, columns, dtype=torch.uint8) for columns in (64, 64, 96))
    for message, error, arguments in (
        ("layout must be 'i2_s_128x32', .*got 'tq1_0'", ValueError, (data, 256, "tq1_0", out)),
        (r"data must be \(rows, 66\) uint8 for in_features=256", ValueError, (data, 256, "tq2_0", out)),
        ("multiple of 128 for layout='i2_s_128x32', got 64", ValueError, (data, 64, "i2_s_128x32", out)),
        ("must not be negative, got -1", ValueError, (data, -1, "bitnet", out)),
        (r"w_packed must be \(8, 16\) uint8", ValueError, (data, 64, "bitnet", out)),
        (r"data must be \(rows, 64\) .*got \[64\]", ValueError, (data[0], 256, "i2_s_128x32", out)),
        ("data must be uint8, got int8", TypeError, (data.char(), 256, "i2_s_128x32", out)),
        ("w_packed must be uint8, got int8", TypeError, (data, 256, "i2_s_128x32", out.char())),
        ("side by side", ValueError, (data, 256, "i2_s_128x32", torch.zeros(64, 2, dtype=torch.uint8).T)),
        ("w_packed must lie apart from data", ValueError, (data, 256, "i2_s_128x32", data)),
        ("w_packed must lie apart from data", ValueError, (wide[:, :64], 256, "i2_s_128x32", wide[:, 32:96])),
        ("rows of w_packed must not overlap", ValueError, (data, 256, "i2_s_128x32", out[:1].expand(2, 64))),
        (
            "rows of w_packed must not overlap",
            ValueError,
            (data, 256, "i2_s_128x32", wide.as_strided((2, 64), (63, 1))),
        ),
    ):
        with pytest.raises(error, match=message):
            ops.ternary_from_fields(*arguments)
    for to in ((data.to("meta"), out), (data, out.to("meta"))):
        with pytest.raises(RuntimeError, match=r"data is on .*but w_packed is on"):
            ops.ternary_from_fields(to[0], 256, "i2_s_128x32", to[1])


@pytest.mark.parametrize("layout", SIZES)
def test_passes_opcheck(layout: str) -> None:
    data = _every_byte(layout, 1)
    arguments = data, SIZES[layout][0], layout, _room(data, SIZES[layout][0], layout)
    torch.library.opcheck(torch.ops.bittorch.ternary_from_fields.default, arguments)
