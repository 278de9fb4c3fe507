"""The machine code of the CUDA kernels, as nvdisasm shows it: what a pass of an inner loop runs.

A product at the limit of memory has a few instructions a weight, and a spill or a narrow load is a fact of the object
code that needs no device. Used by test_sass.py; by hand: python tests/cuda_host/sass.py 90 prints every loop.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ROOT / "csrc" / "kernels" / "cuda"
ARCHES = (80, 87, 89, 90, 100, 120)
# As tests/cuda_host/Makefile and setup.py have them.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fmad=false", "-DBT_WITH_CUDA")

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
LABEL = re.compile(r"(\.L_x_\d+):")


def tool(name: str, variable: str) -> str:
    """A program of CUDA's: where the variable says, in CUDA_HOME or else on PATH, or in a package of this Python."""
    home = os.environ.get("CUDA_HOME")  # where it is set, the only toolkit, as for setup.py
    places = [os.environ.get(variable)]
    places += [f"{home}/bin/{name}"] if home else [shutil.which(name), f"/usr/local/cuda/bin/{name}"]
    places += [str(found) for entry in sys.path if entry for found in Path(entry).glob(f"nvidia/*/bin/{name}")]
    for place in places:
        if place and Path(place).exists():
            return place
    raise FileNotFoundError(f"{name} not found; set {variable} (pip install nvidia-cuda-nvdisasm has nvdisasm)")


@functools.cache
def knows(arch: int) -> bool:
    """Whether this nvcc compiles for the architecture: 100 and 120 came with CUDA 12.8."""
    run = subprocess.run([tool("nvcc", "NVCC"), "--list-gpu-arch"], check=True, capture_output=True, text=True)
    return f"compute_{arch}" in run.stdout.split()


def tools() -> tuple[str, str]:
    return tool("nvcc", "NVCC"), tool("nvdisasm", "NVDISASM")


@dataclass(frozen=True)
class Code:
    """A kernel: its name as C++ writes it, its instructions, and the places of its labels among them."""

    name: str
    instructions: list[tuple[str, str]]
    labels: dict[str, int]

    def count(self, prefix: str) -> int:
        return sum(opcode.startswith(prefix) for opcode, _ in self.instructions)

    def loops(self, product: str) -> list[Counter[str]]:
        """The opcodes of the innermost loops that hold an instruction of this prefix."""
        spans = []
        for at, (opcode, operands) in enumerate(self.instructions):
            target = re.search(r"\.L_x_\d+", operands) if opcode.startswith("BRA") else None
            begin = self.labels.get(target.group(0), at + 1) if target else at + 1
            if begin <= at and any(name.startswith(product) for name, _ in self.instructions[begin : at + 1]):
                spans.append((begin, at + 1))
        inner = [s for s in spans if not any(t != s and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
        return [Counter(name for name, _ in self.instructions[begin:end]) for begin, end in inner]


def parse(listing: str) -> list[Code]:
    codes: list[Code] = []
    for line in listing.split("\n"):
        if section := re.match(r"\.text\.(\S+):", line):
            codes.append(Code(section.group(1), [], {}))
        elif not codes:
            continue
        elif label := LABEL.match(line):
            codes[-1].labels[label.group(1)] = len(codes[-1].instructions)
        elif instruction := INSTRUCTION.match(line):
            codes[-1].instructions.append((instruction.group(1), instruction.group(2)))
    return codes


def of_the_integer_pipe(loop: Counter[str]) -> int:
    """Those that share the half-rate integer lanes; IMAD runs in the lanes of fp32, and so do its shifts and moves."""
    lanes = ("LOP3", "SHF", "IADD3", "ISETP", "SEL", "PRMT", "LEA", "VIADD", "VIMNMX", "PLOP3", "IMNMX")
    return sum(count for opcode, count in loop.items() if opcode.startswith(lanes))


def disassemble(source: Path, arch: int, out: Path) -> list[Code]:
    nvcc, nvdisasm = tools()
    cubin = out / f"{source.stem}_{arch}.cubin"
    target = f"arch=compute_{arch},code=sm_{arch}"
    subprocess.run([nvcc, *FLAGS, "-gencode", target, "-cubin", "-o", cubin, source], check=True)
    listing = subprocess.run([nvdisasm, "-c", cubin], check=True, capture_output=True, text=True).stdout
    names = "\n".join(code.name for code in parse(listing))
    plain = subprocess.run(["c++filt"], input=names, check=True, capture_output=True, text=True).stdout.split("\n")
    return [
        Code(name.replace("(anonymous namespace)::", ""), code.instructions, code.labels)
        for code, name in zip(parse(listing), plain, strict=False)
    ]


def main() -> None:
    import tempfile

    for arch in map(int, sys.argv[1:]) if len(sys.argv) > 1 else ARCHES:
        with tempfile.TemporaryDirectory() as out:
            for source in sorted(SOURCES.glob("ternary_linear_*.cu")):
                for code in disassemble(source, arch, Path(out)):
                    for loop in code.loops("IMMA") + code.loops("HMMA"):
                        products = sum(n for opcode, n in loop.items() if opcode.startswith(("IMMA", "HMMA")))
                        total, integer = sum(loop.values()), of_the_integer_pipe(loop)
                        print(f"sm_{arch} {code.name.split('(')[0]:45} {total:4} {integer:4} integer {products:4} mma")


if __name__ == "__main__":
    main()
