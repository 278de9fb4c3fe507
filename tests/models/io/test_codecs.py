"""Layouts of other programs: against those programs, by hand, and round trips."""

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.bitnet import pack_weights

from bittorch.models.io import codecs

TQ = {
    "TQ1_0": (codecs.encode_tq1_0, lambda b: _unpacked(*codecs.decode_tq1_0(b), 256)),
    "TQ2_0": (codecs.encode_tq2_0, lambda b: _unpacked(*codecs.decode_tq2_0(b), 256)),
}


def _unpacked(packed: np.ndarray, scale: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return codecs.unpack(packed, columns), scale


def _codes(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.int8)


def _scales(n: int) -> np.ndarray:
    return np.random.default_rng(7).uniform(0.01, 4, n).astype(np.float16)


@pytest.mark.parametrize("name", TQ)
def test_tq_equals_gguf_py(name: str) -> None:
    encode, decode = TQ[name]
    codes, scale = _codes(37, 256), _scales(37)
    kind = gguf.GGMLQuantizationType[name]
    theirs = gguf.quants.quantize(codes * scale.astype(np.float32)[:, None], kind).reshape(37, -1)
    assert np.array_equal(encode(codes, scale), theirs)
    found, d = decode(theirs)
    assert np.array_equal(found, codes)
    assert np.array_equal(d, scale)


def test_every_byte_of_tq1_0_decodes_as_in_gguf_py() -> None:  # FIELD L14
    """The 243 bytes that five trits make; the others are damage, which gguf-py decodes to something."""
    valid = -(-np.arange(243) * 256 // 243)
    blocks = np.repeat(valid.astype(np.uint8)[:, None], 54, axis=1)
    blocks[:, 52:] = np.float16([1]).view(np.uint8)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.TQ1_0)
    assert np.array_equal(codecs.unpack(codecs.decode_tq1_0(blocks)[0], 256), theirs)
    for byte in set(range(256)) - set(valid.tolist()):
        damaged = blocks[:3].copy()
        damaged[1, 40] = byte
        with pytest.raises(codecs.ReservedCode, match=f"byte {byte}, which no five trits make"):
            codecs.decode_tq1_0(damaged)


def test_ptq1_0_digit_by_digit() -> None:
    """128 weights: five digits of 16 bytes, five of 8, four of 2; base 3, the first digit the most significant."""
    codes, scale = _codes(9, 128), _scales(9)
    blocks = np.zeros((9, 28), np.uint8)
    for row in range(9):
        places = [[16 * n + m for n in range(5)] for m in range(16)]
        places += [[80 + 8 * n + m for n in range(5)] for m in range(8)]
        places += [[120 + 2 * n + m for n in range(4)] for m in range(2)]
        for byte, columns in enumerate(places):
            digits = [int(codes[row, column]) + 1 for column in columns] + [0] * (5 - len(columns))
            blocks[row, byte] = -(-int("".join(map(str, digits)), 3) * 256 // 243)
    blocks[:, 26:] = scale[:, None].view(np.uint8)
    packed, d = codecs.decode_ptq1_0(blocks)
    assert np.array_equal(codecs.unpack(packed, 128), codes)
    assert np.array_equal(d, scale)
    for byte in (3, 25):
        damaged = blocks.copy()
        damaged[4, byte] = 1
        with pytest.raises(codecs.ReservedCode, match="byte 1, which no five trits make"):
            codecs.decode_ptq1_0(damaged)


def test_stq1_0_group_by_group() -> None:
    """64 groups of four weights that stand 16 apart; one is 0, and five bits say which and the signs of the others."""
    rng = np.random.default_rng(5)
    zero, signs = rng.integers(0, 4, (3, 64)), rng.choice([-1, 1], (3, 64, 3))
    codes, blocks, scale = np.zeros((3, 256), np.int8), np.zeros((3, 42), np.uint8), _scales(3)
    for row in range(3):
        for group in range(64):
            first, second, third = (int(sign) for sign in signs[row, group])
            chunk, place = divmod(group, 16)
            columns = [64 * chunk + place + 16 * lane for lane in range(4) if lane != zero[row, group]]
            codes[row, columns] = first, second, third
            slot = int(zero[row, group]) << 2 | (second != first) | (third != first) << 1
            blocks[row, group // 2] |= slot << 4 * (group % 2)
            blocks[row, 32 + group // 8] |= (first < 0) << group % 8
    blocks[:, 40:] = scale[:, None].view(np.uint8)
    packed, d = codecs.decode_stq1_0(blocks)
    assert np.array_equal(codecs.unpack(packed, 256), codes)
    assert np.array_equal(d, scale)


def test_stq1_0_byte_for_byte() -> None:
    """Slots 0 to 15 of a file's table: two bits a lane from the lowest, -1, 0 and 1 as 0, 1 and 2."""
    table = bytes.fromhex("a9892909a68626069a921a126a624a42")
    block = np.zeros((1, 42), np.uint8)
    block[0, :8] = [slot | (slot + 1) << 4 for slot in range(0, 16, 2)]
    block[0, 40:] = np.float16([1]).view(np.uint8)
    found = codecs.unpack(codecs.decode_stq1_0(block)[0], 256)[0]
    for slot in range(16):
        assert found[[slot, slot + 16, slot + 32, slot + 48]].tolist() == [
            (table[slot] >> 2 * p & 3) - 1 for p in range(4)
        ]


def test_frozen_blocks() -> None:
    """Bytes written by hand from the definitions of the layouts."""
    codes = np.zeros((1, 256), np.int8)
    codes[0, [0, 32, 64, 96]] = 1, -1, 0, 1  # TQ2_0: the four fields of byte 0, first lowest: 2, 0, 1, 2
    block = codecs.encode_tq2_0(codes, np.float16([1]))
    assert block[0, 0] == 0b10_01_00_10
    assert block[0, 64:].tolist() == [0x00, 0x3C]  # 1.0 as float16
    codes = np.zeros((1, 256), np.int8)
    codes[0, [0, 32, 64, 96, 128]] = 1, -1, 0, 1, -1  # TQ1_0: digits 2 0 1 2 0, first most significant
    value = 2 * 81 + 0 * 27 + 1 * 9 + 2 * 3 + 0
    assert codecs.encode_tq1_0(codes, np.float16([1]))[0, 0] == -(-value * 256 // 243)
    codes = np.zeros((1, 128), np.int8)
    codes[0, [0, 32, 64, 96]] = 1, -1, 0, 1  # I2_S: the first quarter in the top bits: 2, 0, 1, 2
    assert codecs.encode_i2_s(codes)[0, 0] == 0b10_00_01_10
    codes = np.zeros((1, 64), np.int8)
    codes[0, :4] = 1, -1, 0, 1  # Q2_0: scale first, then weight 0 lowest
    assert codecs.encode_q2_0(codes, np.float16([1]))[0, :3].tolist() == [0x00, 0x3C, 0b10_01_00_10]
    assert codecs.encode_base3(np.int8([[1, 0, -1, 0, 1, -1]])).tolist() == [[2 + 3 + 0 + 27 + 162, 0 + 120]]
    codes = np.int8([[1], [-1], [0], [1]])  # transformers: one byte, row 0 lowest
    assert codecs.encode_bitnet(codes).tolist() == [[0b10_01_00_10]]
    assert codecs.encode_int32(np.int8([[1, -1, 0]])).tolist() == [[0b10_01_11]]


@pytest.mark.parametrize(("n", "k"), [(4, 1), (8, 5), (12, 64), (64, 67)])
def test_bitnet_equals_transformers(n: int, k: int) -> None:
    codes = _codes(n, k)
    theirs = pack_weights(torch.from_numpy(codes).float()).numpy()
    assert np.array_equal(codecs.encode_bitnet(codes), theirs)
    packed = np.empty((n, -(-k // 4)), np.uint8)
    codecs.decode_fields(theirs, k, "bitnet", packed)
    assert np.array_equal(codecs.unpack(packed, k), codes)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 15), (4, 16), (5, 17), (8, 64), (3, 67)])
def test_int32_equals_compressed_tensors(n: int, k: int) -> None:
    codes = _codes(n, k)
    theirs = pack_to_int32(torch.from_numpy(codes), 2).numpy()
    assert np.array_equal(codecs.encode_int32(codes), theirs)
    found = codecs.decode_int32(theirs.view(np.uint8), k)
    assert np.array_equal(found, codecs.pack(codes))


@pytest.mark.parametrize("block", [64, 128])
def test_q2_0(block: int) -> None:
    """By the definition: scale, then ``code + 1``, four per byte, first lowest."""
    codes, scale = _codes(9, block), _scales(9)
    fields = (codes + 1).astype(np.uint8).reshape(9, -1, 4)
    data = (fields << np.uint8([0, 2, 4, 6])).sum(axis=2, dtype=np.uint8)
    stored = np.concatenate([scale[:, None].view(np.uint8), data], axis=1)
    packed, d = codecs.decode_q2_0(stored)
    assert np.array_equal(codecs.unpack(packed, block), codes)
    assert np.array_equal(d, scale)
    if block == 64:
        assert np.array_equal(codecs.encode_q2_0(codes, scale), stored)


@pytest.mark.parametrize("part", [16, 32])
def test_i2_s(part: int) -> None:
    """By the definition: element j of a block at byte j % part, bits 6 - 2 (j / part)."""
    codes = _codes(11, 4 * part)
    stored = np.zeros((11, part), np.uint8)
    for element in range(4 * part):
        field = (codes[:, element] + 1).astype(np.uint8)
        stored[:, element % part] |= field << np.uint8(6 - 2 * (element // part))
    packed = np.empty_like(stored)
    codecs.decode_fields(stored, 4 * part, {16: "i2_s_64x16", 32: "i2_s_128x32"}[part], packed)
    assert np.array_equal(codecs.unpack(packed, 4 * part), codes)
    if part == 32:
        assert np.array_equal(codecs.encode_i2_s(codes), stored)


@given(st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**32))
def test_base3_round_trip(n: int, k: int, seed: int) -> None:
    codes = _codes(n, k, seed)
    data = codecs.encode_base3(codes)
    assert data.shape == (n, -(-k // 5))
    assert data.max() <= 242
    weights = (codes.astype(int) + 1)[:, :5]
    assert np.array_equal(data[:, 0], (weights * 3 ** np.arange(weights.shape[1])).sum(1) + _ones_above(k))
    assert np.array_equal(codecs.decode_base3(data, k), codecs.pack(codes))


def _ones_above(k: int) -> int:
    """What the padding adds to the first byte: weight 0 is digit 1."""
    return sum(3**i for i in range(min(k, 5), 5))


def test_reserved_codes_are_refused() -> None:
    block = codecs.encode_tq2_0(_codes(2, 256), _scales(2))
    for byte in (0, 40, 63):
        for field in range(4):
            damaged = block.copy()
            damaged[1, byte] |= 3 << 2 * field
            with pytest.raises(codecs.ReservedCode, match="11"):
                codecs.decode_tq2_0(damaged)
    with pytest.raises(codecs.ReservedCode, match="-2"):
        codecs.decode_int32(np.uint8([[0b10_10_10_00, 0, 0, 0]]), 4)
    with pytest.raises(codecs.ReservedCode, match="242"):
        codecs.decode_base3(np.uint8([[243]]), 5)
    with pytest.raises(codecs.ReservedCode, match="padded"):
        codecs.decode_base3(np.uint8([[0]]), 3)
    with pytest.raises(codecs.ReservedCode, match="beyond column 4"):  # which no packed byte holds
        codecs.decode_base3(np.uint8([[121], [40]]), 4)


@given(st.binary(min_size=32, max_size=32))
def test_plus_one_maps_each_field_alone(data: bytes) -> None:
    stored = np.frombuffer(data, np.uint8)
    fields = (stored[:, None] >> np.uint8([0, 2, 4, 6])) & 3
    if (fields == 3).any():
        with pytest.raises(codecs.ReservedCode):
            codecs.canonical_from_plus_one(stored)
    else:
        found = codecs.canonical_from_plus_one(stored)
        expected = np.select([fields == 2, fields == 0], [1, 2], 0).astype(np.uint8)
        assert np.array_equal((found[:, None] >> np.uint8([0, 2, 4, 6])) & 3, expected)
    low = stored | (~(stored | stored >> 1) & 0x55)  # no field 0
    shown = (low[:, None] >> np.uint8([0, 2, 4, 6])) & 3
    twos = np.select([shown == 3, shown == 1], [1, 2], 0)
    assert np.array_equal((codecs.canonical_from_plus_two(low)[:, None] >> np.uint8([0, 2, 4, 6])) & 3, twos)
