from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from bittorch import ops
from bittorch.ops import reference
from tests import helpers

# Weights and bytes of a block of each layout.
SIZES = {"rows": (5, 1), "tq1_0": (256, 54), "ptq1_0": (128, 28)}


def _every_byte(layout: str, blocks: int = 1) -> Tensor:
    """256 rows, in which every place of a block has every byte once."""
    bytes_a_row = blocks * SIZES[layout][1]
    return (torch.arange(256)[:, None] + 7 * torch.arange(bytes_a_row)).to(torch.uint8)


@pytest.mark.parametrize("layout", SIZES)
def test_every_byte_in_every_place_equals_the_reference(layout: str) -> None:
    data, k = _every_byte(layout, 3), 3 * SIZES[layout][0]
    packed = ops.ternary_from_base3(data, k, layout)
    assert torch.equal(packed, reference.ternary_from_base3(data, k, layout))
    assert (ops.ternary_check(packed, packed.shape[1] * 4) >= 0).any()


def test_the_trits_of_every_byte_by_counting() -> None:
    """Each row is a byte; five nested loops over the trits give the bytes in order."""
    trits = [[e, d, c, b, a] for a in range(-1, 2) for b in range(-1, 2) for c in range(-1, 2) for d in range(-1, 2)
             for e in range(-1, 2)]  # fmt: skip
    codes = torch.tensor(trits, dtype=torch.int8)
    assert torch.equal(ops.ternary_from_base3(torch.arange(243, dtype=torch.uint8)[:, None], 5), helpers.pack(codes))
    for byte in range(243, 256):
        packed = ops.ternary_from_base3(torch.tensor([[byte]], dtype=torch.uint8), 5)
        assert packed.tolist() == [[0xFF, 0x03]]


@pytest.mark.parametrize("k", [*helpers.EDGE_SIZES, 2, 16, 18, 19, 20, 21, 36, 39, 40])
def test_rows_of_edge_sizes_equal_the_reference(k: int) -> None:
    data = torch.randint(0, 256, (5, (k + 4) // 5), generator=helpers.seeded(k), dtype=torch.uint8)
    assert torch.equal(ops.ternary_from_base3(data, k), reference.ternary_from_base3(data, k))


def test_tq1_0_equals_gguf_py() -> None:
    blocks = np.random.default_rng(3).integers(0, 243, (7, 3, 54))
    stored = (-(-blocks * 256 // 243)).astype(np.uint8)
    stored[:, :, 52:] = np.float16([1]).view(np.uint8)
    theirs = gguf.quants.dequantize(stored.reshape(7, -1), gguf.GGMLQuantizationType.TQ1_0)
    packed = ops.ternary_from_base3(torch.from_numpy(stored.reshape(7, -1)), 768, "tq1_0")
    assert np.array_equal(ops.ternary_unpack(packed, None, 768, torch.float32).numpy(), theirs)


def test_golden_bytes() -> None:
    row = torch.tensor([[2 + 3 + 0 + 27 + 162, 0 + 120]], dtype=torch.uint8)  # + 0 - 0 +, then - and padding
    assert ops.ternary_from_base3(row, 6).tolist() == [[0b00_10_00_01, 0b00_00_10_01]]


@pytest.mark.parametrize("arrange", [*helpers.LAYOUTS.values(), lambda t: _misaligned(t)])
@pytest.mark.parametrize("layout", SIZES)
def test_data_anywhere_in_memory(layout: str, arrange: Callable[[Tensor], Tensor]) -> None:
    data, k = _every_byte(layout, 2), 2 * SIZES[layout][0]
    assert torch.equal(ops.ternary_from_base3(arrange(data), k, layout), ops.ternary_from_base3(data, k, layout))


def _misaligned(t: Tensor) -> Tensor:
    return torch.cat([torch.zeros(3, dtype=torch.uint8), t.flatten()])[3:].view(t.shape)


@pytest.mark.parametrize("layout", SIZES)
def test_two_threads_equal_one(layout: str) -> None:
    blocks = 6000 // SIZES[layout][0]
    data, k = _every_byte(layout, blocks), blocks * SIZES[layout][0]
    one = ops.ternary_from_base3(data, k, layout)
    with helpers.threads(2):
        assert torch.equal(ops.ternary_from_base3(data, k, layout), one)


@pytest.mark.parametrize("layout", SIZES)
def test_rows_of_a_larger_tensor_are_written_to(layout: str) -> None:
    data, k = _every_byte(layout, 7), 7 * SIZES[layout][0]
    expected = ops.ternary_from_base3(data, k, layout)
    wide = torch.full((256, expected.shape[1] + 7), 0xA5, dtype=torch.uint8)
    version = wide._version
    assert ops.ternary_from_base3(data, k, layout, out=wide[:, 3:-4]).data_ptr() == wide[:, 3:].data_ptr()
    assert torch.equal(wide[:, 3:-4], expected)
    assert (torch.cat([wide[:, :3], wide[:, -4:]], 1) == 0xA5).all()
    assert wide._version > version
    torch.library.opcheck(torch.ops.bittorch.ternary_from_base3.out, (data, k, layout), {"out": expected})
    with pytest.raises(ValueError, match=r"out must be \(256"):
        ops.ternary_from_base3(data, k, layout, out=wide)
    with pytest.raises(ValueError, match="bytes of a row of out must lie side by side"):
        ops.ternary_from_base3(data, k, layout, out=torch.empty(expected.shape[::-1], dtype=torch.uint8).T)
    with pytest.raises(RuntimeError, match="data is on cpu but out is on meta"):
        ops.ternary_from_base3(data, k, layout, out=expected.to("meta"))


def test_refuses_other_layouts_shapes_and_dtypes() -> None:
    data = torch.zeros(2, 54, dtype=torch.uint8)
    with pytest.raises(ValueError, match="layout must be 'rows', 'tq1_0' or 'ptq1_0', got 'tq2_0'"):
        ops.ternary_from_base3(data, 256, "tq2_0")
    with pytest.raises(
        ValueError, match=r"data must be \(out_features, 108\) uint8 for in_features=512 and layout='tq1_0"
    ):
        ops.ternary_from_base3(data, 512, "tq1_0")
    with pytest.raises(ValueError, match="multiple of 128 for layout='ptq1_0', got 200"):
        ops.ternary_from_base3(data, 200, "ptq1_0")
    with pytest.raises(ValueError, match=r"data must be \(out_features, 2\) .*, got \[54\]"):
        ops.ternary_from_base3(data[0], 9)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ops.ternary_from_base3(data, -1)
    with pytest.raises(ValueError, match=r"below 2\^63|data must be"):
        ops.ternary_from_base3(data, 2**63 - 256, "tq1_0")
    with pytest.raises(TypeError, match="data must be uint8, got int8"):
        ops.ternary_from_base3(data.to(torch.int8), 270)
    with pytest.raises(ValueError, match="data must be"):
        torch.ops.bittorch.ternary_from_base3(data.to("meta"), 512, "tq1_0")


@pytest.mark.parametrize("layout", SIZES)
def test_passes_opcheck(layout: str) -> None:
    arguments = _every_byte(layout), SIZES[layout][0], layout
    torch.library.opcheck(torch.ops.bittorch.ternary_from_base3.default, arguments)
