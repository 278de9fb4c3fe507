"""`make wheel`: a wheel for Linux with glibc 2.28 or later, with a shim for each torch that is named.

    python packaging/build_wheel.py [--machine aarch64] [FILE ...]

FILE is a wheel of torch for that machine, of which the headers and the libraries to link to are unpacked. The torch of
this environment has a shim too, where the wheel is for this machine; for another one gcc compiles for it. The wheel
lies in dist/, and was checked: its platform by auditwheel, the stable ABI by abi3audit, its size, and that each shim
finds its symbols in the libraries of its torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
HOST = platform.machine()
MACHINES = ("x86_64", "aarch64")
LIMIT = 12_000_000  # bytes, of a wheel without CUDA kernels
LIBRARIES = tuple(f"lib/lib{name}.so" for name in ("c10", "torch_cpu", "torch"))
OF_TORCH = re.compile(r"_Z[A-Z]*(?:2at|3c10|5torch)")  # a name of its namespaces, as C++ mangles it


def unpack(wheel: Path, machine: str) -> Path:
    """The folder of a wheel of torch with what a shim is compiled against and linked to, unpacked once."""
    parts = wheel.stem.split("-")
    if wheel.suffix != ".whl" or len(parts) < 5:
        raise SystemExit(f"{wheel} is not named as a wheel is: NAME-VERSION-PYTHON-ABI-PLATFORM.whl")
    name, tags = parts[1], parts[-1]
    if not tags.endswith(machine):
        raise SystemExit(f"{wheel} is a torch for {tags}, and the wheel is to be for {machine}")
    if not wheel.is_file():
        raise SystemExit(f"there is no {wheel}")
    folder = WORK / "torches" / machine / name
    if not folder.exists():
        partial = folder.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            wanted = [name for name in names if name.startswith("torch/include/") or name[6:] in LIBRARIES]
            archive.extractall(partial, wanted)
        (partial / "torch").rename(folder)
        partial.rmdir()
    return folder


def compilers(machine: str) -> dict[str, str]:
    """The variables of setup.py that make code for another machine; a missing compiler ends the program."""
    if machine == HOST:
        return {}
    found = {"CC": f"{machine}-linux-gnu-gcc", "CXX": f"{machine}-linux-gnu-g++"}
    if lacking := [name for name in found.values() if not shutil.which(name)]:
        package = f"g++-{machine.replace('_', '-')}-linux-gnu"
        raise SystemExit(f"a wheel for {machine} needs {' and '.join(lacking)} (Debian: {package})")
    return {**found, "BITTORCH_MACHINE": machine, "BITTORCH_CUDA": "0"}


def build(torches: list[Path], machine: str) -> Path:
    """Runs setup.py with a linker for the platform; returns the wheel."""
    shutil.rmtree(WORK / "lib", ignore_errors=True)
    environment = {
        "BITTORCH_CUDA": "0",
        **os.environ,
        **compilers(machine),
        "BITTORCH_LINKER": shlex.join([sys.executable, str(ROOT / "packaging" / "manylinux_link.py"), machine]),
        "BITTORCH_TORCHES": ":".join(map(str, torches)),
    }
    WORK.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(WORK)]  # not beside the sources
    command += ["build", "--build-base", str(WORK / "lib"), "bdist_wheel"]
    command += ["--plat-name", f"manylinux_2_28_{machine}", "--dist-dir", str(WORK / "dist")]
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (wheel,) = (WORK / "dist").iterdir()
    return wheel


def symbols(library: Path, kind: str) -> set[str]:
    """The names of torch's namespaces that a shared library has (--defined-only) or must find (--undefined-only)."""
    command = ["nm", "--dynamic", "--format=posix", kind, str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = (line.split()[:2] for line in lines)
    weak = "wv" if kind == "--undefined-only" else ""
    return {name.split("@")[0] for name, letter in found if letter not in weak and OF_TORCH.match(name)}


def unresolved(shim: Path, torch: Path) -> list[str]:
    """What a shim wants of torch and the libraries of this torch do not have."""
    defined = set().union(*(symbols(torch / name, "--defined-only") for name in LIBRARIES))
    return sorted(symbols(shim, "--undefined-only") - defined)


def check_symbols(wheel: Path, torches: list[Path]) -> list[str]:
    """What is wrong with the shims of the torches that were named; the one of this environment is run by tests."""
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        for torch in torches:
            major, minor = torch.name.split(".")[:2]
            shim = Path(archive.extract(f"bittorch/_C.torch{major}{minor}.abi3.so", WORK / "shims"))
            if missing := unresolved(shim, torch):
                problems.append(f"{shim.name} wants of torch {torch.name} what it does not have: {', '.join(missing)}")
    return problems


def check(wheel: Path, machine: str = HOST) -> list[str]:
    """What is wrong with a wheel."""
    problems = []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, env=environment
    )
    tags = re.findall(rf"manylinux_2_(\d+)_{machine}", shown.stdout)
    if shown.returncode != 0 or not tags or min(map(int, tags)) > 28:
        problems.append(f"auditwheel: it is no manylinux_2_28_{machine}\n{shown.stdout}{shown.stderr}")
    audit = subprocess.run(
        [sys.executable, "-m", "abi3audit", "--strict", str(wheel)], capture_output=True, text=True, env=environment
    )
    if audit.returncode != 0:
        problems.append(f"abi3audit: {audit.stdout}{audit.stderr}")
    if wheel.stat().st_size > LIMIT and os.environ.get("BITTORCH_CUDA", "0") == "0":
        problems.append(f"it has {wheel.stat().st_size} bytes, more than {LIMIT}")
    return problems


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="a wheel of bittorch for other machines", allow_abbrev=False)
    parser.add_argument("--machine", choices=MACHINES, default=HOST, help="what it is for; by default as this machine")
    parser.add_argument(
        "--unpack", action="store_true", help="unpack FILE alone, and print BITTORCH_TORCHES for setup.py"
    )
    parser.add_argument("torches", nargs="*", type=Path, metavar="FILE", help="a wheel of torch for that machine")
    options = parser.parse_args(arguments)
    if options.machine != HOST and not options.torches:
        parser.error(f"--machine {options.machine} needs FILE, a wheel of torch for that machine")
    torches = [unpack(path, options.machine) for path in options.torches]
    if options.unpack:
        print(":".join(str(folder.relative_to(ROOT)) for folder in torches))
        return 0
    wheel = build(torches, options.machine)
    if problems := [*check(wheel, options.machine), *check_symbols(wheel, torches)]:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    target = ROOT / "dist" / wheel.name
    target.parent.mkdir(exist_ok=True)
    shutil.move(wheel, target)
    with zipfile.ZipFile(target) as archive:
        shims = sorted(name for name in archive.namelist() if "/_C.torch" in name)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {', '.join(Path(name).name for name in shims)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
