"""`make test-aarch64`: tests the wheel for aarch64 in an emulated Debian root, on a machine of another kind.

    python packaging/emulate.py ROOT WHEEL TORCH

ROOT is a folder outside the repository, made once: Debian 12 for arm64, whose packages are unpacked and not configured,
and TORCH, a wheel of torch for Python 3.11, with what it needs. qemu-aarch64 runs its Python and looks in it for every
absolute path, so neither chroot nor binfmt_misc is needed; only debootstrap wants root's rights. WHEEL is installed
anew each time. Then: `bittorch doctor`; that each op with NEON kernels chooses one; tests of each op by its definition,
of which few_cases.py keeps the first case for each kernel. Speed says nothing here. A missing tool is one line, and an
error with BITTORCH_CI=1 alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE, PYTHON = "bookworm", "3.11"
# pip reads the markers of requirements for the machine that it runs on, so they are named here.
NEEDED_BY_TORCH = "numpy safetensors filelock typing_extensions sympy mpmath networkx jinja2 markupsafe fsspec"
NEEDED_BY_TESTS = "pytest iniconfig pluggy packaging pygments gguf pyyaml tqdm requests"
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# Of each op what compares it with its definition, in shapes that an emulator computes in seconds.
PARITY = {
    "act_quantize": ("act_quantize_rounds_half_to_even", "act_quantize_equals_formula_at_any_magnitude"),
    "bitplane_matmul": ("product_is_the_exact_one",),
    "bitplane_pack": ("planes_are_those_of_the_reference",),
    "block_linear": ("products_are_the_sums_of_the_definition",),
    "block_unpack": ("blocks_are_those_of_gguf_py",),
    "decode_attention": ("attention_is_that_of_torch",),
    "hadamard": ("hadamard_is_the_matrix_of_sylvester",),
    "half_linear": ("products_are_the_sums_of_the_definition",),
    "linear_i8": ("every_variant_gives_the_integers_of_the_contract",),
    "rotary_store": ("heads_and_cache_are_those_of_torch",),
    "ternary_check": ("check_finds_the_reserved_code", "check_finds_wrong_padding"),
    "ternary_conv2d": ("forward_is_that_of_the_packed_op",),
    "ternary_conv2d_packed": ("floats_are_near_the_float64_convolution", "every_granularity_and_bias"),
    "ternary_embedding": ("embedding_equals_the_definition_at_edge_sizes",),
    "ternary_from_base3": ("golden_bytes", "tq1_0_equals_gguf_py"),
    "ternary_from_fields": ("golden_bytes", "tq2_0_equals_gguf_py"),
    "ternary_linear": ("linear_equals_quantize_then_product",),
    "ternary_linear_packed": ("packed_is_near_float64_at_edge_sizes_of_k", "packed_uses_the_scale_of_each_group"),
    "ternary_linear_w2a8": ("w2a8_equals_integers_at_edge_sizes_of_k", "w2a8_of_extreme_codes_is_exact"),
    "ternary_pack": ("pack_gives_golden_bytes", "pack_equals_definition_at_edge_sizes"),
    "ternary_quantize": ("quantize_with_other_thresholds", "quantize_with_many_ties"),
    "ternary_transpose": ("transpose_gives_golden_bytes", "transpose_packs_the_transposed_codes"),
    "ternary_unpack": ("unpack_inverts_the_definition_at_edge_sizes", "unpack_is_one_product_and_one_cast"),
    "trit_depth_linear": ("every_variant_gives_the_integers_of_the_contract",),
    "trit_elementwise": ("kernel_equals_the_reference_and_pads_with_zeros",),
    "trit_reduce": ("counts_are_those_of_the_values",),
}
CHOICES = """
from bittorch import _C
rows = [row for row in _C.kernels() if row["device"] == "cpu" and row["usable"]]
dtypes = ("float32", "float16", "bfloat16", "int8")
wrong = []
for op in sorted({row["op"] for row in rows if row["variant"].startswith("neon")}):
    chosen = {_C.chosen_kernel(op, "cpu", dtype, None) for dtype in dtypes} - {None}
    print(f"  {op}: {' '.join(sorted(chosen))}")
    if not any(name.startswith("neon") for name in chosen):
        wrong.append(op)
assert rows and not wrong, f"ops that do not choose their NEON kernels: {wrong}"
"""


def missing(root: Path) -> Iterator[str]:
    """What this machine lacks, in words."""
    if not shutil.which("qemu-aarch64"):
        yield "no qemu-aarch64 (package qemu-user)"
    if (root / "debian.made").exists():
        return
    if not shutil.which("debootstrap"):
        yield "no debootstrap (package debootstrap)"
    if os.geteuid() != 0:
        yield f"not root, whose rights debootstrap needs to make {root}"


def make_debian(root: Path) -> None:
    """The packages of Debian, unpacked: nothing of them is run, so no emulator is needed yet."""
    if (root / "debian.made").exists():
        return
    debian = root / "debian"
    shutil.rmtree(debian, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", "--include=python3,libgomp1"]
    subprocess.run([*command, SUITE, str(debian)], check=True)
    for package in sorted((debian / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(debian)], check=True)
    (root / "debian.made").touch()


def install(folder: Path, *packages: str) -> None:
    """Packages for the emulated Python, by the pip of this one, which runs nothing of them."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--target", str(folder)]
    subprocess.run([*command, *(f"--platform={tag}" for tag in TAGS), *packages], check=True)


def make_packages(root: Path, torch: Path) -> None:
    """torch and what it and the tests need, installed once for each torch."""
    made = root / f"{torch.stem}.made"
    if not made.exists():
        for old in root.glob("torch-*.made"):
            old.unlink()
        install(root / "packages", str(torch), *NEEDED_BY_TORCH.split(), *NEEDED_BY_TESTS.split())
        made.touch()


def emulated(root: Path, *arguments: str) -> None:
    """Runs the Python of the root in a folder that holds the tests alone; a failure ends the program."""
    paths = [root / "bittorch", root / "packages", REPOSITORY / "packaging"]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = ["qemu-aarch64", "-L", str(root / "debian"), str(root / f"debian/usr/bin/python{PYTHON}"), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tests", "pyproject.toml"):
            Path(folder, name).symlink_to(REPOSITORY / name)
        code = subprocess.run(command, cwd=folder, env=environment).returncode
    if code:
        raise SystemExit(f"failed with exit code {code} under emulation: python {' '.join(arguments)[:200]}")


def main(root: Path, wheel: Path, torch: Path) -> int:
    if lacking := list(missing(root)):
        print(f"not run: {', '.join(lacking)}; not tested: the wheel for aarch64")
        return 1 if os.environ.get("BITTORCH_CI") == "1" else 0
    for path in (wheel, torch):
        if not path.is_file():
            raise SystemExit(f"there is no {path}; make it by: make wheel-aarch64")
    make_debian(root)
    make_packages(root, torch)
    install(root / "bittorch", str(wheel))
    print(f"== doctor, {wheel.name}, {torch.name}", flush=True)
    emulated(root, "-m", "bittorch", "doctor")
    print("== kernels that are chosen", flush=True)
    emulated(root, "-c", CHOICES)
    print("== each op beside its definition", flush=True)
    tests = [f"tests/ops/test_{op}.py::test_{name}" for op, names in PARITY.items() for name in names]
    emulated(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "few_cases", *tests)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: emulate.py ROOT WHEEL TORCH")
    sys.exit(main(*map(Path, sys.argv[1:])))
