"""Builds bittorch._C: C kernels by cc, the torch shim by c++, .cu kernels by nvcc when there is one.

Environment: BITTORCH_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CC, CXX. Empty means unset.
torch's own BuildExtension is not used: it compiles .c files as C++ and refuses nvcc beside a CPU-only torch.
"""

import atexit
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools

# What --no-build-isolation leaves unchecked; an older one fails in the middle of pyproject.toml.
if 0 < int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"bittorch's build needs setuptools 77 or later, and {setuptools.__version__} is installed here: "
        "pip install 'setuptools>=77'"
    )

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def isa_flags():
    """csrc/kernels/isa.h: for the last word of a kernel's file name the machine that it is for, and its flags."""
    machines, flags = {"X86": "x86_64", "ARM": "aarch64"}, {"NONE": []}
    found = {"scalar": (None, [])}
    text = (ROOT / "csrc/kernels/isa.h").read_text()
    for constant, name, machine, base, own in re.findall(r'\bX\((\w+), (\w+), (\w+), (\w+), "([^"]*)"', text):
        flags[constant] = [*flags[base], *own.split()]
        found[name] = (machines[machine], flags[constant])
    return found


ISA_FLAGS = isa_flags()

# No compiler may fuse a multiplication with an addition: the epilogues' bits are part of the contract.
COMMON = ["-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
# 8.7 is Jetson Orin; the PTX of 8.0 serves every later device. An older nvcc builds those that it knows.
DEFAULT_CUDA_ARCHES = ("8.0+PTX", "8.7", "8.9", "9.0", "10.0", "12.0")


def setting(name, default=""):
    """A variable of the environment; an empty one, as containers set them, counts as unset."""
    return os.environ.get(name) or default


def import_torch():
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "bittorch builds against the PyTorch that it will run with, and none is importable here.\n"
            "Install PyTorch first, then bittorch without build isolation:\n"
            "    pip install torch\n"
            "    pip install --no-build-isolation ."
        ) from None
    return torch


def find_cuda_home():
    """CUDA's folder, or None when there is no nvcc or BITTORCH_CUDA=0 says not to use it."""
    wanted = setting("BITTORCH_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"BITTORCH_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    # CUDA_HOME, where it is set, is the only place: another toolkit than the one that was named is a surprise.
    candidates = [Path(setting("CUDA_HOME"))] if setting("CUDA_HOME") else toolkits()
    for home in candidates:
        if (home / "bin" / "nvcc").exists():
            return home
    if wanted == "1":
        raise SystemExit(f"BITTORCH_CUDA=1, but none of {[str(c) for c in candidates]} holds bin/nvcc; set CUDA_HOME")
    print(f"no CUDA kernels in this build: no bin/nvcc in {' or '.join(map(str, candidates))}", flush=True)
    return None


def toolkits():
    """Where CUDA may be when CUDA_HOME does not say it."""
    candidates = []
    if on_path := shutil.which("nvcc"):
        # A wrapper script on PATH need not lie in the toolkit, so ask nvcc itself.
        dryrun = subprocess.run([on_path, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += [Path(top).resolve() for top in re.findall(r"^#\$ TOP=(.+)$", dryrun.stderr, re.M)]
    return [*candidates, Path("/usr/local/cuda")]


def cuda_library_dir(home):
    for folder in ("lib64", "lib", f"targets/{MACHINE}-linux/lib"):
        if (home / folder / "libcudart_static.a").exists():
            return home / folder
    raise SystemExit(f"{home} has nvcc but no libcudart_static.a; install the CUDA runtime or set BITTORCH_CUDA=0")


def default_arches(home):
    known = subprocess.run([home / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    wanted = {arch: "compute_" + arch.removesuffix("+PTX").replace(".", "") for arch in DEFAULT_CUDA_ARCHES}
    return ";".join(arch for arch, name in wanted.items() if not known or name in known)


def gencode_flags(arch_list):
    flags = []
    for arch in re.split(r"[;\s]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", arch)
        if not match:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST wants numbers such as '8.0+PTX;8.7;9.0', got {arch!r}")
        number = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def minor_of(torch):
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def max_jobs():
    wanted = setting("MAX_JOBS", str(os.cpu_count() or 1))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise SystemExit(f"MAX_JOBS must be a positive number, got {wanted!r}")
    return int(wanted)


def is_writable(folder):
    """Whether a file can be made in a folder, or in the folder where it would be made."""
    return is_writable(folder.parent) if not folder.exists() else os.access(folder, os.W_OK)


def requirements():
    """What the wheel needs: the minor version of torch that it is built against, and no other.

    A source distribution is not built against any.
    """
    torch = "torch>=2.8"
    if "sdist" not in sys.argv and importlib.util.find_spec("torch"):
        torch = "torch=={}.{}.*".format(*minor_of(import_torch()))
    return [torch, "numpy>=1.26", "safetensors>=0.5"]


def options():
    """The stable ABI since Python 3.10; and nothing is written into sources that cannot be written to."""
    chosen = {"bdist_wheel": {"py_limited_api": "cp310"}}
    if not is_writable(ROOT):
        elsewhere = tempfile.mkdtemp(prefix="bittorch-build-")
        atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
        chosen |= {"egg_info": {"egg_base": elsewhere}, "build": {"build_base": elsewhere}}
    return chosen


class Compiler:
    """The compile and link commands, and which sources exist for this machine."""

    def __init__(self):
        self.torch = import_torch()
        from torch.utils import cpp_extension

        self.cuda_home = find_cuda_home()
        self.arches = ""
        if self.cuda_home:
            self.arches = setting("TORCH_CUDA_ARCH_LIST") or default_arches(self.cuda_home)
        # Before torch 2.11 the stream comes through torch's CUDA library and headers, see dispatch/checks.cpp.
        self.torch_cuda = self.cuda_home and self.torch.version.cuda and minor_of(self.torch) < (2, 11)
        self.cc = shlex.split(setting("CC", "cc"))
        self.cxx = shlex.split(setting("CXX", "c++"))
        self.defines = ["-DBT_WITH_CUDA"] if self.cuda_home else []
        # Messages of torch's headers name their file: as torch/..., not as the folder of the machine that builds.
        folder = Path(self.torch.__file__).parent
        self.torch_includes = [f"-ffile-prefix-map={folder}=torch"]
        self.torch_includes += [f"-I{path}" for path in cpp_extension.include_paths()]
        self.torch_libraries = cpp_extension.library_paths()
        self.cxx_standard = "c++17" if minor_of(self.torch) <= (2, 11) else "c++20"

    def sources(self):
        kernels = [
            path
            for path in sorted((ROOT / "csrc/kernels/cpu").glob("*.c"))
            if ISA_FLAGS[path.stem.rsplit("_", 1)[1]][0] in (None, MACHINE)
        ]
        cuda = sorted((ROOT / "csrc/kernels/cuda").glob("*.cu")) if self.cuda_home else []
        dispatch = sorted((ROOT / "csrc/dispatch").glob("*.c")) + sorted((ROOT / "csrc/dispatch").glob("*.cpp"))
        return dispatch[::-1] + cuda + kernels  # the slow ones first

    def command(self, source):
        if source.suffix == ".cu":
            flags = ["-O3", "-DNDEBUG", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
            return [self.cuda_home / "bin/nvcc", *flags, *gencode_flags(self.arches), *self.defines]
        if source.suffix == ".cpp":
            # -fopenmp makes at::parallel_for run on torch's threads; without it the loop is silently serial.
            flags = [f"-std={self.cxx_standard}", "-fopenmp", *COMMON, "-Wno-unused-parameter"]
            # The version is there to compile anew when the torch of this environment has become another.
            version = f'-DBT_TORCH_VERSION="{self.torch.__version__}"'
            cuda = ["-DBT_CUDA_TORCH", f"-I{self.cuda_home / 'include'}"] if self.torch_cuda else []
            return [*self.cxx, *flags, *self.defines, version, *cuda, *self.torch_includes]
        isa = ISA_FLAGS[source.stem.rsplit("_", 1)[1]][1] if source.parent.name == "cpu" else []
        python = [f"-I{self.python_include()}", "-DPy_LIMITED_API=0x030A0000"] if source.name == "module.c" else []
        return [*self.cc, "-std=c11", *COMMON, *isa, *self.defines, *python]

    @staticmethod
    def python_include():
        include = Path(sysconfig.get_paths()["include"])
        if not (include / "Python.h").exists():
            version = "{}.{}".format(*sys.version_info)
            raise SystemExit(f"no Python.h in {include}; install the headers of Python {version} (Debian: python3-dev)")
        return include

    def link(self, objects, target):
        # `import bittorch` imports torch first, whose libraries are then loaded, wherever they are. The one path names
        # no folder of the machine that builds: it is for tools that load _C alone.
        command = [*self.cxx, "-shared", "-o", target, *objects, *(f"-L{folder}" for folder in self.torch_libraries)]
        command += ["-Wl,-rpath,$ORIGIN/../torch/lib", "-lc10", "-ltorch_cpu", "-ltorch"]
        command += ["-lc10_cuda"] if self.torch_cuda else []
        if self.cuda_home:
            command += [f"-L{cuda_library_dir(self.cuda_home)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return command


class BuildKernels(build_ext):
    """Compiles what changed, in parallel, and links bittorch/_C.abi3.so."""

    def build_extension(self, ext):
        compiler = Compiler()
        target = Path(self.get_ext_fullpath(ext.name))
        # Not build_temp, which pip makes anew each time: what did not change is not compiled again. Where the sources
        # cannot be written to, it holds what is missing among the objects that lie beside them.
        kept = ROOT / "build/objects"
        objects_dir = kept if is_writable(kept) else Path(self.build_temp).resolve()
        shared = [*ROOT.glob("csrc/kernels/*.h"), *ROOT.glob("csrc/dispatch/*.h"), Path(__file__)]
        kernel_headers = [*ROOT.glob("csrc/kernels/cpu/*.h"), *ROOT.glob("csrc/kernels/cuda/*.cuh")]
        jobs, objects = [], []
        for source in compiler.sources():
            name = str(source.relative_to(ROOT / "csrc")).replace("/", "_") + ".o"
            # Relative, so that nothing in the binary names a folder of the machine that builds.
            command = [str(part) for part in [*compiler.command(source), "-c", source.relative_to(ROOT)]]
            inputs = [source, *shared, *(kernel_headers if source.suffix != ".cpp" else [])]
            stale = self.is_stale(kept / name, command, max(path.stat().st_mtime for path in inputs))
            obj = objects_dir / name if stale else kept / name
            objects.append(str(obj))
            if stale:
                jobs.append((source, obj, command))
        objects_dir.mkdir(parents=True, exist_ok=True)
        numbered = [(*job, f"{number}/{len(jobs)}") for number, job in enumerate(jobs, 1)]
        with ThreadPoolExecutor(max_jobs()) as pool:
            list(pool.map(lambda job: self.compile_one(*job), numbered))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.shell([str(part) for part in compiler.link(objects, target.resolve())])
        self.write_build_info(compiler, target.parent / "_build_info.py")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        built = Path(self.get_ext_fullpath("bittorch._C")).parent / "_build_info.py"
        shutil.copyfile(ROOT / self.build_lib / "bittorch/_build_info.py", built)

    def is_stale(self, obj, command, newest_input):
        recorded = obj.with_suffix(".cmd")
        fresh = obj.exists() and obj.stat().st_mtime > newest_input
        return self.force or not (fresh and recorded.exists() and recorded.read_text() == shlex.join(command))

    def compile_one(self, source, obj, command, place):
        print(f"compile {place} {source.relative_to(ROOT)}", flush=True)
        self.shell([*command, "-o", str(obj)])
        obj.with_suffix(".cmd").write_text(shlex.join(command))

    @staticmethod
    def shell(command):
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except FileNotFoundError:
            hint = "install a C and a C++ compiler (Debian: g++), or name them by CC and CXX"
            raise SystemExit(f"{command[0]} is not installed; {hint}") from None
        if done.stdout:
            print(done.stdout, file=sys.stderr)
        if done.returncode != 0:
            raise SystemExit(f"failed with exit code {done.returncode}: {shlex.join(command)}")

    @staticmethod
    def write_build_info(compiler, path):
        """Read before _C is loaded: a _C that was built against another torch fails in the dynamic loader."""
        path.write_text(
            '"""Written by setup.py; not edited, not committed."""\n\n'
            f"TORCH_VERSION = {compiler.torch.__version__!r}\n"
            f"CUDA_ARCHES = {compiler.arches!r}\n"
        )


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("bittorch._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": BuildKernels},
        install_requires=requirements(),
        options=options(),
    )
