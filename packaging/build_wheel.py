"""`make wheel`: a wheel for Linux on x86-64 with glibc 2.28 or later, with a shim for each torch that is named.

    python packaging/build_wheel.py [FILE ...]

FILE is a wheel of another minor version of torch, of which the headers are unpacked and nothing else. The torch of this
environment always has a shim. The wheel lies in dist/, and was checked: its platform by auditwheel, the stable ABI by
abi3audit, and its size.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
PLATFORM = "manylinux_2_28_x86_64"
LIMIT = 12_000_000  # bytes, of a wheel without CUDA kernels


def unpack_headers(wheel: Path) -> Path:
    """The include folder of a wheel of torch, unpacked once."""
    name = wheel.name.split("-")[1]
    folder = WORK / "headers" / name / "torch"
    if not folder.exists():
        partial = folder.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial, [path for path in archive.namelist() if path.startswith("torch/include/")])
        (partial / "torch").rename(folder)
        partial.rmdir()
    return folder / "include"


def build(headers: list[Path]) -> Path:
    """Runs setup.py with a linker for the platform; returns the wheel."""
    shutil.rmtree(WORK / "lib", ignore_errors=True)
    environment = {
        "BITTORCH_CUDA": "0",
        **os.environ,
        "BITTORCH_LINKER": shlex.join([sys.executable, str(ROOT / "packaging" / "manylinux_link.py")]),
        "BITTORCH_TORCH_HEADERS": ":".join(map(str, headers)),
    }
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(WORK / "lib"), "bdist_wheel"]
    command += ["--plat-name", PLATFORM, "--dist-dir", str(WORK / "dist")]
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (wheel,) = (WORK / "dist").iterdir()
    return wheel


def check(wheel: Path) -> list[str]:
    """What is wrong with a wheel."""
    problems = []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, env=environment
    )
    tags = re.findall(r"manylinux_2_(\d+)_x86_64", shown.stdout)
    if shown.returncode != 0 or not tags or min(map(int, tags)) > 28:
        problems.append(f"auditwheel: it is no {PLATFORM}\n{shown.stdout}{shown.stderr}")
    audit = subprocess.run(
        [sys.executable, "-m", "abi3audit", "--strict", str(wheel)], capture_output=True, text=True, env=environment
    )
    if audit.returncode != 0:
        problems.append(f"abi3audit: {audit.stdout}{audit.stderr}")
    if wheel.stat().st_size > LIMIT and os.environ.get("BITTORCH_CUDA", "0") == "0":
        problems.append(f"it has {wheel.stat().st_size} bytes, more than {LIMIT}")
    return problems


def main(arguments: list[str]) -> int:
    wheel = build([unpack_headers(Path(argument)) for argument in arguments])
    if problems := check(wheel):
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
