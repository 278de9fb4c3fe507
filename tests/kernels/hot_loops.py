"""The inner loops of the products, as objdump shows them: which instructions one pass runs, and what it should not.

A kernel's speed at large batches is instructions for each product, so a spill or a copied accumulator is a fact of the
object code that no noise hides. Used by test_hot_loops.py and benchmark/instruction_counts.py.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "csrc" / "kernels" / "cpu"
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
HOT = 12  # products in a pass; loops of fewer take the bias off again, or are tails


@dataclass(frozen=True)
class Loop:
    """What a pass should hold; `instructions` is derived from the tile, and MARGIN comes on top."""

    what: str
    products: int
    decodes: int
    instructions: int
    copies: int = 0
    within: str = ""  # describes loops of functions of this prefix alone, and is the only kind of row that does
    stack: int = 0


@dataclass(frozen=True)
class Kernel:
    """Opcodes by their beginning: `product` multiplies, `accumulate` writes the sums, `decode` makes trits of codes."""

    product: str
    decode: str
    loops: tuple[Loop, ...]
    accumulate: str = ""


MARGIN = 1.1

# One row a kernel file, or one for each product that it has, named after a space; one Loop for each number of tokens T,
# or of positions of a convolution. A new variant: add its row, deriving the counts from its source in the same way; a
# tile that changes changes its row. With rows in the lanes (x86_lane_rows.h) a pass of the int8 products is a word of
# V vectors by Q rows of q: V loads, 4 V masks, 3 V shifts, 4 Q broadcasts, 4 V Q products, and counters and addresses.
# Small scale groups: few_dots() of T rows of q has the shifts, masks and products of T tokens, then 10 T to sum over
# lanes and 4 T stores. Its sums begin with the offset, which gcc copies for each row, and some go over the stack.
# few_tiles() makes the offsets. add_groups() is rows in lanes.
KERNELS = {
    # A pass is a block of 256 columns of 4 rows. Codes: load, shift, vpternlogd and prefetch a row: 16; masks: 4 planes
    # of 4 rows: 16; counters and pointers: 4. T = 1: 4 loads of x, 16 products. T > 1: 12 shifts, 4 T loads, 16 T.
    "ternary_linear_w2a8_avx512vnni": Kernel(
        "vpdpbusd",
        "vpternlog",
        (
            Loop("1 token", 16, 4, 56),
            Loop("2 tokens", 32, 4, 88),
            Loop("3 tokens", 48, 4, 108),
            Loop("4 tokens", 64, 4, 128),
            Loop("rows in lanes, V = 1, Q = 4", 16, 0, 40 + 11),
            Loop("rows in lanes, V = 1, Q = 8, or V = 2, Q = 4", 32, 0, 72 + 12),
            Loop("rows in lanes, V = 2, Q = 8", 64, 0, 112 + 11, copies=2),
            Loop("groups, 1 row of q", 16, 4, 88, copies=3, within="few_dots"),
            Loop("groups, 2 rows of q", 32, 4, 130, copies=7, within="few_dots"),
            Loop("groups, 3 rows of q", 48, 4, 177, copies=21, within="few_dots"),
            Loop("groups, 4 rows of q", 64, 4, 205, copies=14, within="few_dots"),
            Loop("offsets", 16, 0, 56, copies=4, within="few_tiles"),
            Loop("groups, V = 1, Q = 4", 16, 0, 57, within="add_groups"),
            Loop("groups, V = 1, Q = 8, or V = 2, Q = 4", 32, 0, 84, within="add_groups"),
            Loop("groups, V = 2, Q = 8", 64, 0, 126, within="add_groups"),
        ),
    ),
    # A pass is a step of 128 columns. Codes: prefetch for two rows; shift, two masks and 4 vpshufb a row. T = 1, 4
    # rows: 2, 28, 4 loads of weights, which are loaded again as operands of masks, 4 loads of x, 16 products, counters
    # and addresses 20, of which 8 are the rows'. T = 2, 4 rows: 2, 28, 4 loads, 32 products that load x, 14. T > 2, 2
    # rows: 1, 14, 2 loads, 8 T products that load x, 13 + T.
    "ternary_linear_w2a8_avxvnni": Kernel(
        "vpdpbusd",
        "vpshufb",
        (
            Loop("1 token", 16, 16, 74),
            Loop("2 tokens", 32, 16, 80),
            Loop("3 tokens", 24, 8, 57),
            Loop("4 tokens", 32, 8, 66),
            Loop("rows in lanes, V = 1, Q = 4", 16, 0, 40 + 11),
            Loop("rows in lanes, V = 2, Q = 4", 32, 0, 64 + 12),
            Loop("groups, 1 row of q", 16, 16, 81, copies=3, within="few_dots"),
            Loop("groups, 2 rows of q", 32, 16, 138, copies=6, within="few_dots", stack=8),
            Loop("groups, 3 rows of q", 48, 16, 191, copies=9, within="few_dots", stack=8),
            Loop("groups, 4 rows of q", 64, 16, 256, copies=15, within="few_dots", stack=14),
            Loop("offsets", 16, 0, 50, copies=4, within="few_tiles"),
            Loop("groups, V = 1, Q = 4", 16, 0, 57, within="add_groups"),
            Loop("groups, V = 2, Q = 4", 32, 0, 84, copies=2, within="add_groups"),
        ),
    ),
    # A pass is a step of 128 columns. T = 1, 4 rows: 4 loads, 2 prefetches, shift and two masks a row: 12, 16 vpshufb,
    # 4 loads of x, 16 pairs of product and sum: 32, counters and address of the step: 9. T > 1, 2 rows: 2 loads, 1
    # prefetch, 6, 8, 16 T for the pairs, whose products load x, T base pointers, 9.
    "ternary_linear_w2a8_avx2": Kernel(
        "vpmaddubsw",
        "vpshufb",
        (
            # gcc leaves the last of some sums in another register and copies it back, once a pass.
            Loop("1 token", 16, 16, 79 + 1, copies=1),
            Loop("2 tokens", 16, 8, 60),
            Loop("3 tokens", 24, 8, 77 + 2, copies=2),
            Loop("4 tokens", 32, 8, 94 + 1, copies=1),
            # Three instructions a product.
            Loop("rows in lanes, V = 1, Q = 4", 16, 0, 72 + 15),
            Loop("rows in lanes, V = 2, Q = 4", 32, 0, 128 + 14),
            Loop("groups, 1 row of q", 16, 16, 95, within="few_dots"),
            Loop("groups, 2 rows of q", 32, 16, 166, within="few_dots", stack=8),
            Loop("groups, 3 rows of q", 48, 16, 233, within="few_dots", stack=8),
            Loop("groups, 4 rows of q", 64, 16, 320, copies=1, within="few_dots", stack=21),
            Loop("offsets", 16, 0, 58, within="few_tiles"),
            Loop("groups, V = 1, Q = 4", 16, 0, 77, copies=4, within="add_groups"),
            Loop("groups, V = 2, Q = 4", 32, 0, 115, copies=1, within="add_groups"),
        ),
        accumulate="vpaddw",
    ),
    # A pass is four of the 16 steps of a block: 4 vpermilps and 4 shifts a step, T loads of x, 4 T products; counter 3.
    # With rows in the lanes whole words are unrolled; a pass is a column of the last word: V of both, 8 broadcasts.
    "ternary_linear_packed_avx512": Kernel(
        "vfmadd",
        "vpermilps",
        (
            Loop("1 token", 16, 16, 55),
            Loop("2 tokens", 32, 16, 75),
            Loop("3 tokens", 48, 16, 95),
            Loop("4 tokens", 64, 16, 115),
            Loop("rows in lanes, V = 2, 8 tokens", 16, 2, 2 + 2 + 8 + 16 + 3),
        ),
    ),
    # A pass is four of the 8 steps of a block where T < 3, else one: 4 vpermd and 4 shifts a step, T loads of x, 4 T
    # products; counter 3.
    "ternary_linear_packed_avx512bf16": Kernel(
        "vdpbf16ps",
        "vpermd",
        (
            Loop("1 token", 16, 16, 55),
            Loop("2 tokens", 32, 16, 75),
            Loop("3 tokens", 12, 4, 26),
            Loop("4 tokens", 16, 4, 31),
        ),
    ),
    # The same as avx512 in half vectors; two rows where T > 1.
    "ternary_linear_packed_avx2": Kernel(
        "vfmadd",
        "vpermilps",
        (
            Loop("1 token", 16, 16, 55),
            Loop("2 tokens", 16, 8, 43),
            Loop("3 tokens", 24, 8, 55),
            Loop("4 tokens", 32, 8, 67),
        ),
    ),
    # A pass is a quarter of a block. Codes: load, mask, shift and 4 tbl a row; 4 loads of x a token; products; 10 for
    # counters and addresses, and T more where T > 1.
    "ternary_linear_w2a8_neondot": Kernel(
        "sdot",
        "tbl",
        (Loop("1 token", 16, 16, 28 + 4 + 16 + 10), Loop("4 tokens", 32, 8, 14 + 16 + 32 + 14)),
    ),
    "ternary_linear_w2a8_neon": Kernel(
        "smlal",
        "tbl",
        (Loop("1 token", 32, 16, 28 + 4 + 32 + 10), Loop("4 tokens", 64, 8, 14 + 16 + 64 + 14)),
    ),
    # A pass is a quarter of 4 rows. Codes as above: 28; a zip for each register of bytes that two rows share: 4; 4
    # loads of x and 4 zips a token; 8 T products, each of 2 rows and 2 tokens; 10 + T for counters and addresses.
    "ternary_linear_w2a8_neoni8mm": Kernel(
        "smmla",
        "tbl",
        (Loop("2 tokens", 16, 16, 28 + 4 + 8 + 8 + 16 + 12), Loop("4 tokens", 32, 16, 28 + 4 + 16 + 16 + 32 + 14)),
    ),
    # A pass is a byte of the 4 words of each row: the bytes spread, two nibbles and'ed or shifted and or'ed, 4 tbl of
    # their codes: 9 a row; 4 loads of x a token; products; the table that spreads, counters: 4, and T more where T > 1.
    "ternary_linear_packed_neon": Kernel(
        "fmla",
        "tbl",
        # gcc keeps one of the eight sums of 2 x 4 in another register between passes.
        (Loop("1 token", 16, 20, 36 + 4 + 16 + 4), Loop("4 tokens", 32, 10, 18 + 16 + 32 + 4 + 2, copies=2)),
    ),
    # A pass is a block of 512 trits of 4 rows by 3: 6 loads of the planes of 3 rows; 12 times magnitudes and'ed with
    # a plane in memory, signs joined by one vpternlogq, two counts and two sums: 72; counters and addresses 7.
    # A row of a by 8: 2 loads of its planes, 8 times the same six instructions, 5.
    "bitplane_matmul_avx512popcnt": Kernel(
        "vpopcntq",
        "vpternlog",
        (Loop("4 rows by 3", 24, 12, 6 + 72 + 7), Loop("1 row by 8", 16, 8, 2 + 48 + 5)),
        accumulate="vpaddq",
    ),
    # A pass is a vector of 4 rows: 4 loads in vpxor and 4 prefetches, Q loads of q, 4 Q products, counters 4. Fewer
    # rows of q have less than HOT products.
    "linear_i8_avx512vnni": Kernel(
        "vpdpbusd",
        "vpxor",
        (Loop("3 rows of q", 12, 4, 8 + 3 + 12 + 4), Loop("4 rows of q", 16, 4, 8 + 4 + 16 + 4)),
    ),
    # A pass is a vector of 2 rows, as even and odd words: 3 shifts and a load for each row of w and of q; two products
    # and two sums for each pair of both; prefetch, counters 4.
    "linear_i8_avx2": Kernel(
        "vpmaddwd",
        "vpsllw",
        (Loop("3 rows of q", 12, 5, 4 * 5 + 24 + 5), Loop("4 rows of q", 16, 6, 4 * 6 + 32 + 5)),
        accumulate="vpaddd",
    ),
    # A pass is a line of 64 bytes: 5 or 6 loads a vector, a prefetch a row; counters and addresses.
    "linear_i8_neondot": Kernel(
        "sdot",
        "tbl",
        (Loop("1 row of q", 16, 0, 20 + 16 + 4 + 10), Loop("4 rows of q", 32, 0, 24 + 32 + 2 + 9)),
    ),
    # A pass is a vector of 4 decoded rows: 4 loads, Q loads of q, 4 Q products, counters 3. With 3 rows of q gcc 12
    # loads w for each product.
    "trit_depth_linear_avx512vnni": Kernel(
        "vpdpbusd",
        "vpshufb",
        (Loop("3 rows of q", 12, 0, 12 + 3 + 12 + 3), Loop("4 rows of q", 16, 0, 4 + 4 + 16 + 3)),
    ),
    # A pass is 32 columns: 2 weights loaded and widened, of bfloat16 in two steps, 16 products that load x; prefetch,
    # counters 3, and addresses of tokens.
    "half_linear_avx512": Kernel(
        "vfmadd",
        "vpmovzxwd",
        (Loop("8 tokens, bfloat16", 16, 2, 4 + 16 + 4 + 4), Loop("8 tokens, float16", 16, 0, 2 + 16 + 4 + 4)),
    ),
    # A pass is a byte of 4 rows: the byte, its codes broadcast, V loads of x, 4 V products; counters 4.
    "ternary_conv2d_packed_avx512vnni": Kernel(
        "vpdpbusd",
        "vpbroadcastd",
        (Loop("64 positions", 16, 4, 4 + 4 + 4 + 16 + 4), Loop("48 positions", 12, 4, 4 + 4 + 3 + 12 + 4)),
    ),
    # A pass is a column of 4 rows: 4 weights broadcast, V loads of x, 4 V products; counters 4. V = 1: four columns,
    # whose products broadcast the weights; address of 4 rows' weights 8.
    "ternary_conv2d_packed_avx512": Kernel(
        "vfmadd",
        "vbroadcastss",
        (
            Loop("64 positions", 16, 4, 4 + 4 + 16 + 4),
            Loop("48 positions", 12, 4, 4 + 3 + 12 + 4),
            Loop("16 positions", 16, 0, 8 + 4 + 16 + 4),
        ),
    ),
    # The same of two columns, in half vectors. The loop of bytes has 8 products, too few to be looked at.
    "ternary_conv2d_packed_avx2": Kernel("vfmadd", "vbroadcastss", (Loop("16 positions", 16, 8, 8 + 4 + 16 + 4),)),
    # A pass is a column of 4 rows: 4 weights loaded, 2 loads of pairs of x, products by an element, counters 4.
    "ternary_conv2d_packed_neon": Kernel("fmla", "ldr", (Loop("16 positions", 16, 4, 4 + 2 + 16 + 4),)),
    # A pass is a byte of 4 rows: the byte, its codes loaded and spread, loads of pairs of x, made signed; counters 4.
    "ternary_conv2d_packed_neon int8": Kernel("smlal", "dup", (Loop("8 positions", 16, 4, 12 + 1 + 2 + 16 + 4),)),
    "ternary_conv2d_packed_neondot": Kernel("sdot", "dup", (Loop("16 positions", 16, 4, 12 + 2 + 4 + 16 + 4),)),
}


def _setup() -> ModuleType:
    """setup.py, for its flags; imported, it builds nothing."""
    spec = importlib.util.spec_from_file_location("bittorch_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_SETUP = _setup()
COMMON: list[str] = _SETUP.COMMON
ISA_FLAGS: dict[str, tuple[str | None, list[str]]] = _SETUP.ISA_FLAGS


def suffix_of(name: str) -> str:
    """The instruction set of a row, as its file name has it."""
    return name.split()[0].rsplit("_", 1)[1]


def machine_of(name: str) -> str:
    return str(ISA_FLAGS[suffix_of(name)][0])


def tools(machine: str) -> tuple[list[str], str]:
    """The compiler and objdump for a machine; FileNotFoundError tells what is missing."""
    if machine == MACHINE:
        compiler, dump = shlex.split(os.environ.get("CC", "cc")), "objdump"
    else:
        compiler, dump = [f"{machine}-linux-gnu-gcc"], f"{machine}-linux-gnu-objdump"
    for tool in (compiler[0], dump):
        if not shutil.which(tool):
            raise FileNotFoundError(f"{tool} is not installed")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    if "Free Software Foundation" not in version:
        raise FileNotFoundError(f"{compiler[0]} is not gcc, whose loops the table describes")
    return compiler, dump


def listing(name: str, out: Path, source: Path | None = None, extra: tuple[str, ...] = ()) -> str:
    """The disassembly of a kernel file, or of another `source` in its place, compiled as setup.py does it."""
    compiler, dump = tools(machine_of(name))
    flags = [*COMMON, *ISA_FLAGS[suffix_of(name)][1]]
    obj = out / f"{name.split()[0]}.o"
    path = source or SOURCES / f"{name.split()[0]}.c"
    subprocess.run([*compiler, "-std=c11", *flags, *extra, f"-I{SOURCES}", "-c", path, "-o", obj], check=True)
    done = subprocess.run([dump, "-d", "--no-show-raw-insn", obj], check=True, capture_output=True, text=True)
    return done.stdout


@dataclass
class Instruction:
    address: int
    opcode: str
    operands: str
    target: int | None  # index of the instruction that it jumps to
    falls_through: bool = True
    before: list[int] = field(default_factory=list)  # indices of those that may run just before


_LINE = re.compile(r"^\s+([0-9a-f]+):\s+(\S+)\s*(.*)$")
_COMMENT = re.compile(r"\s*(//|#\s).*$")
_JUMP = re.compile(r"j\w+$|b$|b\.\w+$|cbn?z$|tbn?z$")
_TARGET = re.compile(r"(?:^|[\s,])([0-9a-f]+) <")
_NO_RETURN = re.compile(r"jmp\w*$|b$|br$|ret\w*$|ud2$|hlt$")
_PREFIXES = ("{vex}", "notrack", "bnd", "rep", "repz", "lock", "cs", "data16")


def functions(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each function, linked by jumps and order."""
    found: dict[str, list[Instruction]] = {}
    rows: list[Instruction] = []
    for line in text.splitlines():
        if header := re.match(r"^[0-9a-f]+ <(.+)>:$", line):
            rows = found.setdefault(header[1], [])
        elif match := _LINE.match(line):
            opcode, operands = match[2], _COMMENT.sub("", match[3])
            while opcode in _PREFIXES and operands:
                opcode, _, operands = operands.partition(" ")
            rows.append(Instruction(int(match[1], 16), opcode, operands.strip(), None))
    for rows in found.values():
        index = {row.address: i for i, row in enumerate(rows)}
        for i, row in enumerate(rows):
            target = _TARGET.search(row.operands)
            if _JUMP.match(row.opcode) and target:
                row.target = index.get(int(target[1], 16))
            if row.target is not None:
                rows[row.target].before.append(i)
            if not _NO_RETURN.match(row.opcode) and i + 1 < len(rows):
                rows[i + 1].before.append(i)
    return found


def natural_loops(rows: list[Instruction]) -> list[list[int]]:
    """Innermost loops: for each head the instructions that come back to it, if they are entered at the head alone."""
    bodies: dict[int, set[int]] = {}
    for i, row in enumerate(rows):
        head = row.target
        if head is None or head > i:
            continue
        body, todo = {head}, [i]
        while todo:
            at = todo.pop()
            if at not in body:
                body.add(at)
                todo += rows[at].before
        # One that nothing precedes is the entry of the function, or of a case: then the jump only goes back in order.
        if all(rows[at].before and at for at in body - {head}):
            bodies[head] = bodies.get(head, set()) | body
    return [sorted(body) for body in bodies.values() if not any(other < body for other in bodies.values())]


_VECTOR = re.compile(r"%[xyz]mm(\d+)|\b[vq](\d+)\b")


def _registers(operands: str) -> list[int]:
    return [int(a or b) for a, b in _VECTOR.findall(operands)]


def _is_arm(rows: list[Instruction]) -> bool:
    return not any("%" in row.operands for row in rows)


@dataclass
class HotLoop:
    """A loop that holds products."""

    function: str
    address: int
    instructions: int
    products: int
    decodes: int
    stack: list[str]  # vector loads and stores relative to the stack: spills
    copies: list[str]  # copies of an accumulator to another register, or back


def hot_loops(text: str, kernel: Kernel) -> list[HotLoop]:
    """The loops of HOT or more products."""
    found = []
    for name, rows in functions(text).items():
        arm = _is_arm(rows)
        framed = any(row.opcode == "mov" and row.operands == "%rsp,%rbp" for row in rows)
        pointer = re.compile(r"\[(sp|x29)\b" if arm else r"\((%rsp|%rbp)" if framed else r"\(%rsp")
        for body in natural_loops(rows):
            loop = [rows[i] for i in body]
            products = sum(row.opcode.startswith(kernel.product) for row in loop)
            if products < HOT:
                continue
            sums = {
                _registers(row.operands)[0 if arm else -1]
                for row in loop
                if row.opcode.startswith(kernel.accumulate or kernel.product)
            }
            move = re.compile(r"mov$" if arm else r"vmov[adu]")
            texts = [(row, f"{row.address:x}: {row.opcode} {row.operands}") for row in loop]
            found.append(
                HotLoop(
                    name,
                    loop[0].address,
                    len(loop),
                    products,
                    sum(row.opcode.startswith(kernel.decode) for row in loop),
                    [t for row, t in texts if pointer.search(row.operands) and _registers(row.operands)],
                    [
                        t
                        for row, t in texts
                        if move.match(row.opcode)
                        and len(_registers(row.operands)) == 2
                        and not re.search(r"[(\[]", row.operands)
                        and sums & set(_registers(row.operands))
                    ],
                )
            )
    return found


def rows_of(kernel: Kernel, loop: HotLoop) -> list[Loop]:
    """The rows that describe a loop of a listing."""
    same = [row for row in kernel.loops if (row.products, row.decodes) == (loop.products, loop.decodes)]
    named = [row for row in kernel.loops if row.within and loop.function.startswith(row.within)]
    return [row for row in same if row in named] if named else [row for row in same if not row.within]


def complaints(text: str, kernel: Kernel) -> list[str]:
    """What is wrong with the loops of a listing, in words; nothing if all is well."""
    wrong = []
    loops = hot_loops(text, kernel)
    for expected in kernel.loops:
        if not any(expected in rows_of(kernel, loop) for loop in loops):
            counts = f"{expected.products} {kernel.product} and {expected.decodes} {kernel.decode}"
            wrong.append(f"{expected.what}: no loop of {counts}")
    for loop in loops:
        where = f"{loop.function} at {loop.address:x}"
        counts = f"{loop.products} {kernel.product}, {loop.decodes} {kernel.decode}"
        rows = rows_of(kernel, loop)
        if not rows:
            wrong.append(f"{where}: unexpected {counts}")
            continue
        where += f" ({rows[0].what}; {counts})"
        limit = MARGIN * rows[0].instructions
        if loop.instructions > limit:
            each = f"{loop.instructions / loop.products:.2f} a product"
            wrong.append(f"{where}: {loop.instructions} instructions a pass, {each}, limit {limit:.0f}")
        if len(loop.stack) > rows[0].stack:
            wrong.append(f"{where}: vector loads or stores on the stack: {loop.stack}")
        if len(loop.copies) > rows[0].copies:
            wrong.append(f"{where}: copies of accumulators: {loop.copies}")
    return wrong
