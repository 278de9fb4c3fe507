"""The object code of the products' inner loops: the products that the tile has, no spills, no copied accumulators, and
few instructions besides. Compiles each kernel file with the flags of setup.py and reads what objdump prints."""

import os
from pathlib import Path

import pytest

from tests import helpers
from tests.kernels import hot_loops
from tests.kernels.hot_loops import KERNELS, Kernel, Loop

X86, ARM = "ternary_linear_w2a8_avx512vnni", "ternary_linear_w2a8_neondot"


def _listing(name: str, out: Path, source: Path | None = None, extra: tuple[str, ...] = ()) -> str:
    try:
        hot_loops.tools(hot_loops.machine_of(name))
    except FileNotFoundError as error:
        if os.environ.get("BITTORCH_CI") == "1":
            pytest.fail(f"{error}, and BITTORCH_CI=1")
        pytest.skip(f"{error}")
    return hot_loops.listing(name, out, source, extra)


def test_flags_come_from_setup() -> None:
    assert "-ffp-contract=off" in hot_loops.COMMON
    assert hot_loops.ISA_FLAGS["scalar"] == (None, [])
    avx512 = hot_loops.ISA_FLAGS["avx512"][1]
    assert set(avx512) > {"-mavx512bw", *hot_loops.ISA_FLAGS["avx2"][1]}
    assert hot_loops.ISA_FLAGS["avx512vnni"] == ("x86_64", [*avx512, "-mavx512vnni"])
    assert hot_loops.ISA_FLAGS["neon"] == ("aarch64", [])


@pytest.mark.parametrize("name", helpers.slow_but(["ternary_conv2d_packed_avx2", "ternary_linear_w2a8_neon"], KERNELS))
def test_hot_loops(name: str, tmp_path: Path) -> None:
    assert hot_loops.complaints(_listing(name, tmp_path), KERNELS[name]) == []


@pytest.mark.parametrize(
    ("name", "flag"),
    helpers.slow_but([(ARM, "-O0")], [(X86, "-O0"), ("ternary_linear_w2a8_avx2", "-O1"), (ARM, "-O0")]),
)
def test_less_optimised_code_is_noticed(name: str, flag: str, tmp_path: Path) -> None:
    assert hot_loops.complaints(_listing(name, tmp_path, extra=(flag,)), KERNELS[name])


@pytest.mark.slow
def test_a_plane_left_out_is_noticed(tmp_path: Path) -> None:
    source = (hot_loops.SOURCES / f"{X86}.c").read_text()
    assert "p < 4; p++" in source
    mutant = tmp_path / "mutant.c"
    mutant.write_text(source.replace("p < 4; p++", "p < 3; p++"))
    assert "no loop of" in "\n".join(hot_loops.complaints(_listing(X86, tmp_path, mutant), KERNELS[X86]))


TWO_SUMS = Kernel("vpdpbusd", "vpternlog", (Loop("test", 16, 0, 18),))
X86_LISTING = "0000000000000000 <f>:\n   0:\tpush   %rbx\n" + "".join(
    f"  {16 + 6 * i:x}:\tvpdpbusd %zmm8,%zmm9,%zmm{i % 2}\n" for i in range(16)
)
X86_END = "  90:\tadd    $0x40,%rax\n  94:\tjne    10 <f+0x10>\n  98:\tret\n"


def test_a_clean_loop_is_found() -> None:
    assert hot_loops.complaints(X86_LISTING + X86_END, TWO_SUMS) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("vmovdqu64 0x40(%rsp),%zmm9", "on the stack"),
        ("vmovdqa64 %zmm1,0x40(%rsp)", "on the stack"),
        ("vpaddd 0x40(%rsp),%zmm1,%zmm1", "on the stack"),
        ("vmovdqa64 %zmm1,%zmm7", "copies"),
        ("vmovdqa64 %zmm7,%zmm0", "copies"),
    ],
)
def test_spills_and_copies_are_noticed(line: str, complaint: str) -> None:
    assert complaint in "\n".join(hot_loops.complaints(f"{X86_LISTING}  82:\t{line}\n{X86_END}", TWO_SUMS))


@pytest.mark.parametrize("line", ["vmovdqa64 %zmm8,%zmm9", "vmovdqu64 0x40(%rsi),%zmm9", "cmp    %rax,0x40(%rsp)"])
def test_other_instructions_are_not(line: str) -> None:
    assert hot_loops.complaints(f"{X86_LISTING}  82:\t{line}\n{X86_END}", TWO_SUMS) == []


def test_too_many_instructions_are_noticed() -> None:
    padding = "".join(f"  {0x80 + i:x}:\tvpaddd %zmm8,%zmm9,%zmm9\n" for i in range(3))
    assert "limit 20" in "\n".join(hot_loops.complaints(X86_LISTING + padding + X86_END, TWO_SUMS))


def test_a_jump_back_into_straight_code_is_no_loop() -> None:
    """Code that the compiler moved to the end of the function returns by a backward jump."""
    entry = "0000000000000000 <f>:\n   0:\tje     98 <f+0x98>\n"
    assert (
        hot_loops.hot_loops(entry + X86_LISTING.split("\n", 2)[2] + "  94:\tret\n  98:\tjmp    10 <f+0x10>\n", TWO_SUMS)
        == []
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ldr q9, [sp, #16]", "on the stack"),
        ("stp q0, q1, [sp, #32]", "on the stack"),
        ("mov v7.16b, v1.16b", "copies"),
    ],
)
def test_spills_and_copies_are_noticed_on_arm(line: str, complaint: str) -> None:
    products = "".join(f"  {16 + 4 * i:x}:\tsdot\tv{i % 2}.4s, v8.16b, v9.16b\n" for i in range(16))
    start, end = f"0000000000000000 <f>:\n   0:\tnop\n{products}", "  60:\tb.gt\t10 <f+0x10>\n  64:\tret\n"
    kernel = Kernel("sdot", "tbl", (Loop("test", 16, 0, 17),))
    assert hot_loops.complaints(start + end, kernel) == []
    assert complaint in "\n".join(hot_loops.complaints(f"{start}  50:\t{line.replace(' ', chr(9), 1)}\n{end}", kernel))
