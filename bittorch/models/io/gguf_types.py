"""Tensor types of GGUF files by their ids, those of forks included.

Source: ggml (ids up to 42); bitnet.cpp (36 to 39, and 42 in its later builds); AngelSlim (43, and 42 in early files);
the forks of PrismML (142, 143) and ik_llama.cpp.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GGUFType:
    """A tensor type: a block holds ``weights`` in ``bytes``; ``tail`` bytes follow the last block."""

    name: str
    weights: int
    bytes: int
    tail: int = 0


TYPES = {
    0: GGUFType("F32", 1, 4),
    1: GGUFType("F16", 1, 2),
    2: GGUFType("Q4_0", 32, 18),
    3: GGUFType("Q4_1", 32, 20),
    6: GGUFType("Q5_0", 32, 22),
    7: GGUFType("Q5_1", 32, 24),
    8: GGUFType("Q8_0", 32, 34),
    10: GGUFType("Q2_K", 256, 84),
    11: GGUFType("Q3_K", 256, 110),
    12: GGUFType("Q4_K", 256, 144),
    13: GGUFType("Q5_K", 256, 176),
    14: GGUFType("Q6_K", 256, 210),
    16: GGUFType("IQ2_XXS", 256, 66),
    17: GGUFType("IQ2_XS", 256, 74),
    18: GGUFType("IQ3_XXS", 256, 98),
    19: GGUFType("IQ1_S", 256, 50),
    20: GGUFType("IQ4_NL", 32, 18),
    21: GGUFType("IQ3_S", 256, 110),
    22: GGUFType("IQ2_S", 256, 82),
    23: GGUFType("IQ4_XS", 256, 136),
    24: GGUFType("I8", 1, 1),
    25: GGUFType("I16", 1, 2),
    26: GGUFType("I32", 1, 4),
    27: GGUFType("I64", 1, 8),
    28: GGUFType("F64", 1, 8),
    29: GGUFType("IQ1_M", 256, 56),
    30: GGUFType("BF16", 1, 2),
    34: GGUFType("TQ1_0", 256, 54),
    35: GGUFType("TQ2_0", 256, 66),
    36: GGUFType("I2_S", 4, 1, tail=32),
    39: GGUFType("MXFP4", 32, 17),
    40: GGUFType("NVFP4", 64, 36),
    41: GGUFType("Q1_0", 128, 18),
    42: GGUFType("Q2_0", 64, 18),
    43: GGUFType("STQ1_0", 256, 42),
    142: GGUFType("PQ2_0", 128, 34),
    143: GGUFType("PTQ1_0", 128, 28),
}
PRISM = ("PQ2_0", "PTQ1_0")
Q2_0_FORK = GGUFType("Q2_0_128", 128, 34)
_TL = "TL{} of bitnet.cpp, whose order depends on the machine that wrote it; convert the original model to TQ2_0"
_REPACKED = "weights in an order for one kind of machine, which ggml has dropped; convert the original model"
REFUSED = {
    9: "Q8_1, a type of activations",
    15: "Q8_K, a type of activations",
    31: _REPACKED,
    32: _REPACKED,
    33: _REPACKED,
    37: "I8_S of bitnet.cpp, a type of activations",
    38: _TL.format(1),
    134: "IQ1_BN of ik_llama.cpp; convert the original model to TQ1_0",
    135: "IQ2_BN of ik_llama.cpp; convert the original model to TQ2_0",
}


def tl2_bytes(shape: Shape) -> int | None:
    """What a TL2 tensor takes in a file: three weights in 5 bits, those of the last 256 columns two in 4 bits."""
    if len(shape) != 2 or shape[1] < 256:
        return None
    rows, columns = shape
    return (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 4


def tl2_bytes_with_scale(shape: Shape) -> int | None:
    """The same with its scale behind it, as bitnet.cpp's own program writes it; its converter has a tensor for it."""
    packed = tl2_bytes(shape)
    return None if packed is None else -(-packed // 32) * 32 + 32


def block_bytes(kind: GGUFType, shape: Shape) -> int | None:
    """What a tensor of this type and shape takes, None where its rows are not cut into blocks."""
    count, columns = math.prod(shape), shape[-1] if shape else 1
    if columns % kind.weights and not (kind.tail and count % kind.weights == 0):
        return None
    return count // kind.weights * kind.bytes + kind.tail


@dataclasses.dataclass(frozen=True)
class Reuse:
    """What else a fork calls an id of ggml.

    Args:
        bytes: that a tensor of a shape takes; None where it cannot be.
        type: to read it, or None.
        name: for the message where it cannot be read.
    """

    bytes: Callable[[Shape], int | None]
    type: GGUFType | None = None
    name: str = ""


_TL2 = (Reuse(tl2_bytes, name=_TL.format(2)), Reuse(tl2_bytes_with_scale, name=_TL.format(2)))
# A file does not say which fork wrote it. The bytes from each tensor to the next tell.
REUSED: dict[int, tuple[Reuse, ...]] = {
    39: _TL2,
    40: (Reuse(lambda shape: block_bytes(GGUFType("Q1_0", 32, 6), shape), name="Q1_0 of PrismML's fork"),),
    42: (
        Reuse(lambda shape: block_bytes(Q2_0_FORK, shape), type=Q2_0_FORK),
        Reuse(lambda shape: block_bytes(TYPES[43], shape), type=TYPES[43]),
        *_TL2,
    ),
}


def meaning(type_id: int, places: Sequence[tuple[Shape, int]], alignment: int) -> GGUFType | Reuse:
    """What an id of `REUSED` means in a file.

    Args:
        type_id: a key of `REUSED`.
        places: shape of each tensor that has this id, and the bytes to the next tensor or the end of the file.
        alignment: of the file.

    Returns:
        The type; or the use that cannot be read, also where the bytes fit no known use but are too few for ggml's.
    """

    def fills(bytes_of: Callable[[Shape], int | None]) -> bool:
        sizes = [(bytes_of(shape), place) for shape, place in places]
        return all(size is not None and 0 <= place - size < alignment for size, place in sizes)

    own = TYPES[type_id]
    if fills(lambda shape: block_bytes(own, shape)):
        return own
    for use in REUSED[type_id]:
        if fills(use.bytes):
            return use.type or use
    fits = all((size := block_bytes(own, shape)) is not None and size <= place for shape, place in places)
    named = [use for use in REUSED[type_id] if use.name]
    return own if fits or len(named) < len(REUSED[type_id]) else named[0]
