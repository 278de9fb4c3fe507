"""Links objects of gcc for glibc 2.28 and later: BITTORCH_LINKER of setup.py, called as cc is, the machine before.

    python packaging/manylinux_link.py x86_64|aarch64 -shared -o FILE OBJECT ...

Zig's linker has the symbol versions of each glibc. What gcc's own libraries give is named, because Zig would take its
own: libstdc++ above all, through which exceptions pass between torch and the shim. Needs the package ziglang.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# libstdc++'s headers ask whether a process has one thread alone. glibc tells since 2.32; 0 is right for every process.
SINGLE_THREADED = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'


def of_gcc(gcc: list[str], name: str) -> str:
    """Where gcc finds one of its libraries."""
    command = [*gcc, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(machine: str, arguments: list[str]) -> int:
    # The C compiler of the build knows the libraries of the machine; another one than gcc knows those of this gcc.
    gcc = ["gcc"] if machine == os.uname().machine else shlex.split(os.environ["CC"])
    with tempfile.TemporaryDirectory() as folder:
        source, stub = Path(folder, "stub.c"), Path(folder, "stub.o")
        source.write_text(SINGLE_THREADED)
        subprocess.run([*gcc, "-c", "-fPIC", source, "-o", stub], check=True)
        libraries = [of_gcc(gcc, name) for name in ("libstdc++.so.6", "libgcc.a", "libgcc_s.so.1")]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.28", *arguments, str(stub)]
        command += ["-Wl,--allow-shlib-undefined", "-Wl,--as-needed", *libraries]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
