"""Builds the library of kernels, C by cc and .cu by nvcc when there is one, and by c++ the shim of the torch that runs.

Environment: BITTORCH_CUDA=auto|0|1, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CC, CXX. Empty means unset.
For who makes wheels: BITTORCH_TORCHES, folders of other minors of torch with ':' between them, of which each gets a
shim too (include and lib are read); BITTORCH_LINKER links in place of CXX; BITTORCH_MACHINE is what CC, CXX and it make
code for, and then the torch that runs gets no shim. `setup.py build_shim` makes a shim beside installed kernels.
torch's own BuildExtension is not used: it compiles .c files as C++ and refuses nvcc beside a CPU-only torch.
"""

import atexit
import ctypes
import hashlib
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
from typing import ClassVar

import setuptools

# What --no-build-isolation leaves unchecked; an older one fails in the middle of pyproject.toml.
if 0 < int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"bittorch's build needs setuptools 77 or later, and {setuptools.__version__} is installed here: "
        "pip install 'setuptools>=77'"
    )

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
HOST = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
MACHINE = os.environ.get("BITTORCH_MACHINE") or HOST


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
LIBRARY = "libbittorch_kernels.so"
KERNEL_SIDE = ("kernel_table", "cpu_features")  # of csrc/dispatch, what belongs to the library of kernels


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
    home = next((home for home in toolkits() if (home / "bin" / "nvcc").exists()), None)
    if wanted == "1" and not home:
        raise SystemExit(f"BITTORCH_CUDA=1, but none of {list(map(str, toolkits()))} holds bin/nvcc; set CUDA_HOME")
    return home


def toolkits():
    """Where CUDA may be. CUDA_HOME is the only place, where it is set: another toolkit than that is a surprise."""
    if setting("CUDA_HOME"):
        return [Path(setting("CUDA_HOME"))]
    found = []
    if on_path := shutil.which("nvcc"):
        # A wrapper script on PATH need not lie in the toolkit, so ask nvcc itself.
        dryrun = subprocess.run([on_path, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        found = re.findall(r"^#\$ TOP=(.+)$", dryrun.stderr, re.M)
    return [*(Path(top).resolve() for top in found), Path("/usr/local/cuda")]


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


def python_include():
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").exists():
        version = "{}.{}".format(*sys.version_info)
        raise SystemExit(f"no Python.h in {include}; install the headers of Python {version} (Debian: python3-dev)")
    return include


def max_jobs():
    wanted = setting("MAX_JOBS", str(os.cpu_count() or 1))
    if not wanted.isdecimal() or int(wanted) < 1:
        raise SystemExit(f"MAX_JOBS must be a positive number, got {wanted!r}")
    return int(wanted)


def is_writable(folder):
    """Whether a file can be made in a folder, or in the folder where it would be made."""
    return is_writable(folder.parent) if not folder.exists() else os.access(folder, os.W_OK)


class Torch:
    """A minor version of torch, for which a shim is made: of its C++ interface nothing holds for the next one."""

    def __init__(self, version, folder, cuda):
        self.version, self.cuda, self.include, self.libraries = version, cuda, folder / "include", folder / "lib"
        self.minor = tuple(int(part) for part in version.split(".")[:2])
        self.name = "torch{}{}".format(*self.minor)
        self.shim = f"_C.{self.name}.abi3.so"

    @classmethod
    def running(cls):
        torch = import_torch()
        return cls(torch.__version__, Path(torch.__file__).parent, torch.version.cuda)

    @classmethod
    def all(cls):
        """The torch that runs, unless a machine is named, and those of which there are headers and libraries."""
        found = [] if setting("BITTORCH_MACHINE") else [cls.running()]
        for folder in map(Path, filter(None, setting("BITTORCH_TORCHES").split(":"))):
            header = folder / "include/torch/headeronly/version.h"
            numbers = re.findall(r"_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text() if header.exists() else "")
            if len(numbers) != 3:
                raise SystemExit(f"BITTORCH_TORCHES: {header} does not say which torch it is of")
            found.append(cls(".".join(numbers), folder.resolve(), None))
        if not found:
            raise SystemExit(f"BITTORCH_MACHINE={MACHINE} needs the folder of a torch for it in BITTORCH_TORCHES")
        if len({torch.minor for torch in found}) < len(found):
            raise SystemExit(f"BITTORCH_TORCHES: a minor is there twice among {[t.version for t in found]}")
        return sorted(found, key=lambda torch: torch.minor)


def requirements():
    """What the wheel needs: the minor versions of torch that it has shims of, and no other.

    A source distribution is not built against any.
    """
    torch = "torch>=2.8"
    if "sdist" not in sys.argv and (setting("BITTORCH_MACHINE") or importlib.util.find_spec("torch")):
        minors = [torch.minor for torch in Torch.all()]
        (major, first), (_, last) = minors[0], minors[-1]
        torch = f"torch>={major}.{first},<{major}.{last + 1}" if first < last else f"torch=={major}.{first}.*"
        torch += "".join(f",!={major}.{n}.*" for n in range(first, last) if (major, n) not in minors)
    return [torch, "numpy>=1.26", "safetensors>=0.5"]


def interface():
    """A hash of what kernels and shims include alike; each has it, and a shim beside other kernels does not load."""
    headers = sorted((ROOT / "csrc/kernels").glob("*.h")) + [ROOT / f"csrc/dispatch/{name}.h" for name in KERNEL_SIDE]
    return hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()[:12]


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
        self.cuda_home = find_cuda_home()
        arches = setting("TORCH_CUDA_ARCH_LIST")
        self.arches = (arches or default_arches(self.cuda_home)) if self.cuda_home else ""
        self.cc = shlex.split(setting("CC", "cc"))
        self.cxx = shlex.split(setting("CXX", "c++"))
        self.linker = shlex.split(setting("BITTORCH_LINKER")) or self.cxx
        self.defines = ["-DBT_WITH_CUDA"] if self.cuda_home else []
        self.interface = f'-DBT_INTERFACE="{interface()}"'

    def kernel_sources(self):
        kernels = sorted((ROOT / "csrc/kernels/cpu").glob("*.c"))
        kernels = [path for path in kernels if ISA_FLAGS[path.stem.rsplit("_", 1)[1]][0] in (None, MACHINE)]
        cuda = sorted((ROOT / "csrc/kernels/cuda").glob("*.cu")) if self.cuda_home else []
        return [*cuda, *kernels, *(ROOT / f"csrc/dispatch/{name}.c" for name in KERNEL_SIDE)]

    def kernel_command(self, source):
        if source.suffix == ".cu":
            flags = ["-O3", "-DNDEBUG", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
            return [self.cuda_home / "bin/nvcc", *flags, *gencode_flags(self.arches), *self.defines]
        isa = ISA_FLAGS[source.stem.rsplit("_", 1)[1]][1] if source.parent.name == "cpu" else []
        table = [*self.defines, self.interface] if source.stem == "kernel_table" else []
        return [*self.cc, "-std=c11", *COMMON, *isa, *table]

    def shim_command(self, source, torch):
        if source.suffix == ".c":
            python = [f"-I{python_include()}", "-DPy_LIMITED_API=0x030A0000"]
            return [*self.cc, "-std=c11", *COMMON, *python, self.interface]
        # -fopenmp makes at::parallel_for run on torch's threads; without it the loop is silently serial.
        standard = "c++17" if torch.minor <= (2, 11) else "c++20"
        flags = [f"-std={standard}", "-fopenmp", *COMMON, "-Wno-unused-parameter"]
        # The version is there to compile anew when the torch of this environment has become another.
        version = f'-DBT_TORCH_VERSION="{torch.version}"'
        cuda = ["-DBT_CUDA_TORCH", f"-I{self.cuda_home / 'include'}"] if self.needs_torch_cuda(torch) else []
        # Messages of torch's headers name their file: as torch/..., not as the folder of the machine that builds.
        names = f"-ffile-prefix-map={torch.include.parent}=torch"
        includes = [f"-I{torch.include}", f"-I{torch.include / 'torch/csrc/api/include'}"]
        return [*self.cxx, *flags, version, *cuda, names, *includes]

    def needs_torch_cuda(self, torch):
        """Before torch 2.11 the stream comes through torch's CUDA library and headers, see dispatch/checks.cpp."""
        return self.cuda_home and torch.cuda and torch.minor < (2, 11)

    def link_kernels(self, objects, folder):
        command = [*self.linker, "-shared", "-o", folder / LIBRARY, f"-Wl,-soname,{LIBRARY}", *objects, "-lm"]
        if self.cuda_home:
            command += [f"-L{cuda_library_dir(self.cuda_home)}", "-Wl,--exclude-libs,ALL"]
            command += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return command

    def link_shim(self, objects, torch, folder, kernels):
        # `import bittorch` imports torch first, whose libraries are then loaded, wherever they are. The second path
        # names no folder of the machine that builds: it is for tools that load _C alone.
        command = [*self.linker, "-shared", "-o", folder / torch.shim, *objects, kernels / LIBRARY]
        command += [f"-L{torch.libraries}", "-Wl,-rpath,$ORIGIN:$ORIGIN/../torch/lib"]
        return [*command, "-lc10", "-ltorch_cpu", "-ltorch", *(["-lc10_cuda"] if self.needs_torch_cuda(torch) else [])]


class Objects:
    """Compiles in parallel what is older than what it is made of, or was made by another command."""

    def __init__(self, elsewhere, force):
        # Not build_temp, which pip makes anew each time: what did not change is not compiled again. Where the sources
        # cannot be written to, it holds what is missing among the objects that lie beside them.
        self.kept = ROOT / "build/objects" / ("" if MACHINE == HOST else MACHINE)
        self.made = self.kept if is_writable(self.kept) else Path(elsewhere).resolve()
        self.force, self.jobs = force, []

    def add(self, source, command, headers, folder=""):
        """The object of a source, which compile() will have made."""
        name = str(source.relative_to(ROOT / "csrc")).replace("/", "_") + ".o"
        # Relative, so that nothing in the binary names a folder of the machine that builds.
        command = [str(part) for part in [*command, "-c", source.relative_to(ROOT)]]
        newest = max(path.stat().st_mtime for path in [source, *headers])
        kept, recorded = self.kept / folder / name, (self.kept / folder / name).with_suffix(".cmd")
        as_recorded = recorded.exists() and recorded.read_text() == shlex.join(command)
        if as_recorded and kept.exists() and kept.stat().st_mtime > newest and not self.force:
            return kept
        self.jobs.append((source, self.made / folder / name, command))
        return self.made / folder / name

    def kernels(self, compiler):
        headers = [*ROOT.glob("csrc/kernels/**/*.h"), *ROOT.glob("csrc/kernels/cuda/*.cuh")]
        table = [ROOT / f"csrc/dispatch/{name}.h" for name in KERNEL_SIDE]
        return [
            self.add(path, compiler.kernel_command(path), headers + table * (path.stem in KERNEL_SIDE))
            for path in compiler.kernel_sources()
        ]

    def shim(self, compiler, torch):
        headers = list(ROOT.glob("csrc/*/*.h"))
        sources = [*sorted(ROOT.glob("csrc/dispatch/*.cpp"), reverse=True), ROOT / "csrc/dispatch/module.c"]
        return [self.add(path, compiler.shim_command(path, torch), headers, torch.name) for path in sources]

    def compile(self):
        jobs = sorted(self.jobs, key=lambda job: (".cu", ".cpp", ".c").index(job[0].suffix))  # the slow ones first
        with ThreadPoolExecutor(max_jobs()) as pool:
            list(pool.map(lambda n: self.compile_one(*jobs[n], f"{n + 1}/{len(jobs)}"), range(len(jobs))))

    def compile_one(self, source, obj, command, place):
        print(f"compile {place} {source.relative_to(ROOT)}", flush=True)
        obj.parent.mkdir(parents=True, exist_ok=True)
        shell([*command, "-o", str(obj)])
        obj.with_suffix(".cmd").write_text(shlex.join(command))


def shell(command):
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        hint = "install a C and a C++ compiler (Debian: g++), or name them by CC and CXX"
        raise SystemExit(f"{command[0]} is not installed; {hint}") from None
    if done.stdout:
        print(done.stdout, file=sys.stderr)
    if done.returncode != 0:
        raise SystemExit(f"failed with exit code {done.returncode}: {shlex.join(command)}")


class BuildExtension(build_ext):
    """Makes the library of kernels, a shim for each torch, and _build_info.py."""

    def build_extension(self, ext):
        compiler, objects = Compiler(), Objects(self.build_temp, self.force)
        if not compiler.cuda_home and setting("BITTORCH_CUDA") != "0":
            print(f"no CUDA kernels in this build: no bin/nvcc in {' or '.join(map(str, toolkits()))}", flush=True)
        folder = Path(self.build_lib, "bittorch").resolve()
        kernels = objects.kernels(compiler)
        shims = [(torch, objects.shim(compiler, torch)) for torch in Torch.all()]
        objects.compile()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.so"):  # of an earlier build, which had other shims
            old.unlink()
        shell(compiler.link_kernels(kernels, folder))
        for torch, parts in shims:
            shell(compiler.link_shim(parts, torch, folder, folder))
        content = f'"""Written by setup.py; not edited, not committed."""\n\nCUDA_ARCHES = {compiler.arches!r}\n'
        (folder / "_build_info.py").write_text(content)

    def get_outputs(self):
        names = [LIBRARY, *(torch.shim for torch in Torch.all()), "_build_info.py"]
        return [f"{self.build_lib}/bittorch/{name}" for name in names]

    def get_output_mapping(self):
        return {path: path.removeprefix(f"{self.build_lib}/") for path in self.get_outputs()} if self.inplace else {}

    def copy_extensions_to_source(self):
        for path in map(Path, self.get_outputs()):
            target = ROOT / "bittorch" / path.name
            # Not into the old file, which a process may have loaded.
            shutil.copyfile(path, target.with_name(f"{path.name}.new"))
            target.with_name(f"{path.name}.new").replace(target)


class BuildShim(Command):
    """Makes the shim of the torch that runs beside installed kernels, for `python -m bittorch build-shim`."""

    user_options: ClassVar = [("package=", None, "the folder of the installed package")]

    def initialize_options(self):
        self.package = None

    def finalize_options(self):
        self.package = Path(self.package or ROOT / "bittorch")

    def run(self):
        library = ctypes.CDLL(str(self.package / LIBRARY))
        if (ctypes.c_char * 13).in_dll(library, "bt_interface").value != interface().encode():
            raise SystemExit(f"the kernels in {self.package} are of other sources than those in {ROOT}")
        with tempfile.TemporaryDirectory(prefix="bittorch-build-") as elsewhere:
            compiler, torch, objects = Compiler(), Torch.running(), Objects(elsewhere, force=False)
            parts = objects.shim(compiler, torch)
            objects.compile()
            shell(compiler.link_shim(parts, torch, self.package, self.package))


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("bittorch._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": BuildExtension, "build_shim": BuildShim},
        install_requires=requirements(),
        options=options(),
    )
