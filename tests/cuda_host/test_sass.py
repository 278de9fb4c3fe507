"""The machine code of the tensor-core kernels: tensor cores are used, weights come 16 bytes at a time, nothing is on
the stack, and a weight takes few instructions. Skipped without nvcc and nvdisasm, unless BITTORCH_CI=1."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.cuda_host import sass
from tests.cuda_host.sass import Code

W2A8, PACKED = "ternary_linear_w2a8", "ternary_linear_packed"
PRODUCTS = {W2A8: 2, PACKED: 4}  # tensor-core products of a word in 16 rows and 8 columns
# Instructions a weight, and those of them that run in the integer lanes, at most. At full memory bandwidth an H100 has
# time for 2.4 and 1.24. The floor for 8 columns: a lane has of a word 16 weights in each of two rows,
#   W2A8   codes: 2 shifts, 2 logic; 8 operands, 6 of them shifted, all masked: 14; 2 IMMA, 1 load of x: 21 for 32
#   W2A16  the same with 16 operands: 4 + 30; 4 HMMA, 2 loads of x: 40 for 32
# that is 0.66 and 1.25, of which the 2 logic, 2 right shifts and the masks are of the integer lanes: 0.38 and 0.63.
# Loads, pointers, moves and the counter of a step come on top; a step of fewer words has fewer weights to share them.
BUDGET = {
    ("rows", 4): {W2A8: (0.95, 0.45), PACKED: (1.65, 0.70)},
    ("groups", 4): {W2A8: (1.15, 0.52), PACKED: (1.95, 0.80)},
    ("groups", 2): {W2A8: (1.20, 0.60), PACKED: (2.10, 0.90)},
    ("groups", 1): {W2A8: (1.50, 0.85), PACKED: (2.35, 1.05)},
    # For each tile of 8 columns, of which a block has eight or four: with what brings and arranges the next stages, the
    # code for the end of k, which hardly ever runs, and twice that of a group's end.
    ("bulk", 8): {W2A8: (0.57, 0.21), PACKED: (0.75, 0.28)},
    ("bulk", 4): {W2A8: (0.80, 0.33), PACKED: (1.05, 0.44)},
    ("bulk groups", 4): {W2A8: (1.85, 0.60), PACKED: (1.80, 0.56)},
}


@functools.cache
def _kernels(op: str, arch: int) -> list[Code]:
    try:
        sass.tools()
    except FileNotFoundError as error:
        if os.environ.get("BITTORCH_CI") == "1":
            pytest.fail(f"{error}, and BITTORCH_CI=1")
        pytest.skip(f"{error}")
    if not sass.knows(arch):
        pytest.skip(f"this nvcc does not know sm_{arch}")
    with tempfile.TemporaryDirectory() as out:
        return sass.disassemble(sass.SOURCES / f"{op}.cu", arch, Path(out))


def _skinny(op: str, arch: int) -> list[Code]:
    """The kernels that hold tensor-core products."""
    return [code for code in _kernels(op, arch) if re.search(r"bt_(skinny_rows|skinny_groups|bulk)<", code.name)]


def _shape(code: Code) -> tuple[str, int, int, int]:
    """Which kernel; words a lane and row, tiles of 8 columns, tiles of 16 rows, from the template arguments."""
    found = re.search(r"bt_(?:skinny_)?(rows|groups|bulk)<\w+(?:<\d>)?, (\d+), (\d+)(?:, (\w+))?>\(", code.name)
    assert found, code.name
    kind, first, second, third = found.groups()
    if kind == "rows":
        return kind, 4, int(first), int(second)
    if kind == "bulk":
        return "bulk groups" if third == "true" else kind, 2, int(first), 2
    return kind, int(first), int(second), 1


cases = pytest.mark.parametrize(("op", "arch"), [(op, arch) for op in (W2A8, PACKED) for arch in sass.ARCHES])


@cases
@pytest.mark.slow
def test_every_shape_is_there(op: str, arch: int) -> None:
    types = 1 if op == W2A8 else 2
    shapes = Counter(_shape(code) for code in _skinny(op, arch))
    expected = [("rows", 4, 1, 1), ("rows", 4, 2, 2)]
    expected += [("groups", words, tiles, 1) for words in (4, 2, 1) for tiles in (1, 2)]
    expected += [("bulk", 2, 4, 2), ("bulk", 2, 8, 2), ("bulk", 2, 8, 2), ("bulk groups", 2, 4, 2)]
    assert shapes == Counter(expected * types)


@cases
@pytest.mark.slow
def test_nothing_is_on_the_stack(op: str, arch: int) -> None:
    for code in _kernels(op, arch):
        assert code.count("LDL") + code.count("STL") == 0, code.name


@cases
@pytest.mark.slow
def test_tensor_cores_and_wide_loads(op: str, arch: int) -> None:
    product = "IMMA.16832.S8.S8" if op == W2A8 else "HMMA.16816.F32"
    for code in _skinny(op, arch):
        kind, words, _, row_tiles = _shape(code)
        assert code.count(product) > 0, code.name
        assert code.count("LDS.128") > 0, code.name
        loops = code.loops(product)
        assert loops, code.name
        if kind.startswith("bulk"):
            for loop in loops:  # what a stage needs goes straight to shared memory, 16 bytes at a time
                copies = [opcode for opcode in loop.elements() if opcode.startswith("LDGSTS")]
                assert len(copies) >= 3, code.name
                assert all(re.fullmatch(r"LDGSTS\.E\.BYPASS(\.LTC\w+)?\.128(\.\w+)*", copy) for copy in copies), copies
                assert loop["LDGDEPBAR"] >= 1, code.name
            continue
        for loop in loops:
            loads = [opcode for opcode in loop.elements() if opcode.startswith("LDG")]
            width = {4: r"LDG\.E\.NA\.128\.CONSTANT", 2: r"LDG\.E\.64", 1: r"LDG\.E"}[words]
            wide = [opcode for opcode in loads if re.fullmatch(width + r"(\.CONSTANT)?", opcode)]
            assert len(wide) >= 2 * row_tiles, (code.name, loads)
            assert len(wide) == len(loads), (code.name, loads)


@cases
@pytest.mark.slow
def test_a_weight_takes_few_instructions(op: str, arch: int) -> None:
    product = "IMMA" if op == W2A8 else "HMMA"
    for code in _skinny(op, arch):
        kind, words, tiles, row_tiles = _shape(code)
        bulk = kind.startswith("bulk")
        shared_by = tiles if bulk else 1
        most, most_integer = (shared_by * limit for limit in BUDGET[kind, tiles if bulk else words][op])
        for loop in code.loops(product):
            products = sum(count for opcode, count in loop.items() if opcode.startswith(product))
            weights = 32 * products / (tiles * PRODUCTS[op])
            assert weights >= 32 * words * row_tiles, code.name
            assert sum(loop.values()) <= weights * most, (code.name, loop)
            assert sass.of_the_integer_pipe(loop) <= weights * most_integer, (code.name, loop)


@pytest.mark.parametrize("arch", sass.ARCHES)
@pytest.mark.slow
def test_activations_to_be_quantised_are_read_16_bytes_at_a_time(arch: int) -> None:
    """16 of them are four such loads in fp32 and two in halves: of x and of the weight of a norm, for the largest
    magnitude and for the codes."""
    (code,) = (code for code in _kernels("act_quantize", arch) if code.name.startswith("quantize_sixteens("))
    assert code.count("LDG.E.128") == (4 + 2) * 2 * 2
    assert code.count("STG.E.128") == 1


LISTING = """.text._Z1fv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.NA.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LOP3.LUT R8, R4, 0xc0c0c0c0, RZ, 0xc0, !PT ;
.L_x_0:
        /*0030*/                   IMMA.16832.S8.S8 R8, R4.ROW, R20.COL, R8 ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/               @P2 BRA `(.L_x_1) ;
        /*0060*/                   STL [R1], R8 ;
        /*0070*/                   EXIT ;
"""


def test_the_reader_finds_the_innermost_loop_and_the_stack() -> None:
    (code,) = sass.parse(LISTING)
    assert code.loops("IMMA") == [Counter({"IMMA.16832.S8.S8": 1, "BRA": 1})]
    assert code.loops("HMMA") == []
    assert code.count("STL") == 1
    assert sass.of_the_integer_pipe(Counter({"LOP3.LUT": 3, "IMAD.SHL.U32": 2, "SHF.R.U32.HI": 1})) == 4


def test_default_builds_have_native_code_for_what_is_read_here() -> None:
    """The PTX for 8.0 that newer devices would compile spills on 10.0."""
    text = (sass.ROOT / "setup.py").read_text()
    listed = re.search(r"DEFAULT_CUDA_ARCHES = \((.*)\)", text)
    assert listed
    arches = re.findall(r'"(\d+)\.(\d)(?:\+PTX)?"', listed.group(1))
    assert tuple(int(major + minor) for major, minor in arches) == sass.ARCHES
