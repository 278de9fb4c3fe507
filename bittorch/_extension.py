"""Loads bittorch._C, the shim between torch and the kernels: the one of the minor version of torch that runs."""

import importlib
import importlib.machinery
import importlib.util
import platform
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = "libbittorch_kernels.so"
OLDEST_TORCH = (2, 8)
REBUILD = "rebuild it in its checkout: pip install --no-build-isolation --no-deps --force-reinstall ."
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine of ELF files


def minor_version(version: str) -> tuple[int, int]:
    """The part of a torch version that its C++ ABI goes with: (2, 13) for "2.13.0+cpu"."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def shim_name(minor: tuple[int, int]) -> str:
    """The file of the shim, as setup.py names it."""
    return "_C.torch{}{}.abi3.so".format(*minor)


def shims() -> list[tuple[int, int]]:
    """The minor versions of torch that there are shims of, oldest first."""
    names = (re.fullmatch(r"_C\.torch(\d)(\d+)\.abi3\.so", path.name) for path in FOLDER.glob("_C.torch*.so"))
    return sorted((int(name[1]), int(name[2])) for name in names if name)


def describe_shims() -> str:
    """What `doctor` says of this build: "for torch 2.12 and 2.13"."""
    versions = ["{}.{}".format(*minor) for minor in shims()]
    if not versions:
        return "extension not built"
    return "for torch " + " and ".join(filter(None, [", ".join(versions[:-1]), versions[-1]]))


def find_shim(running: str) -> Path:
    """The shim for this version of torch; an ImportError says which there are, and how to get it."""
    minor = minor_version(running)
    if minor in shims():
        return FOLDER / shim_name(minor)
    if minor < OLDEST_TORCH:
        oldest = "{}.{}".format(*OLDEST_TORCH)
        raise ImportError(f"torch {running} is running, and bittorch needs {oldest} or later; upgrade torch")
    raise ImportError(
        f"this bittorch is {describe_shims()}, and torch {running} is running; "
        "make it fit by: python -m bittorch build-shim"
    )


def _running_torch() -> str:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            "bittorch needs PyTorch, and no module 'torch' is installed; install the build that you will run, "
            "then bittorch beside it: pip install --no-build-isolation ."
        ) from None
    return str(torch.__version__)


def _check_files() -> None:
    if not FOLDER.is_dir():
        raise ImportError(
            f"bittorch cannot be imported from the archive {FOLDER.parent}: its extension is a shared library, "
            "which only a file system can hold; unpack the archive or install the wheel"
        )
    if not (FOLDER / LIBRARY).exists() or not shims():
        raise ImportError(
            f"bittorch's extension is not built in {FOLDER}; run: pip install --no-build-isolation -e . (or make build)"
        )


def _built_for(library: Path) -> str:
    """The machine that a shared library is for."""
    with library.open("rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF":
        return "no machine: it is no shared library"
    number = int.from_bytes(head[18:20], "little")
    return MACHINES.get(number, f"machine {number}")


def explain(error: ImportError, shim: Path) -> str:
    """Why the dynamic loader refused the shim, and what to do."""
    for path in (FOLDER / LIBRARY, shim):
        if (built := _built_for(path)) != platform.machine():
            return f"{path} is for {built}, and this is {platform.machine()}; install bittorch's wheel for this machine"
    if missing := re.search(r"version [`']([A-Z]+)_([\d.]+)' not found", str(error)):
        library = {"GLIBC": "the C library", "GLIBCXX": "libstdc++"}.get(missing[1], missing[1])
        has = f"; this system has {platform.libc_ver()[1]}" if missing[1] == "GLIBC" else ""
        return f"it needs {library} {missing[2]} or later{has}; build it here: pip install --no-build-isolation ."
    return f"{error}; {REBUILD}"


def _load_shim(shim: Path) -> None:
    loader = importlib.machinery.ExtensionFileLoader("bittorch._C", str(shim))
    spec = importlib.util.spec_from_file_location("bittorch._C", shim, loader=loader)
    assert spec
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"bittorch's extension does not load: {explain(error, shim)}") from error
    sys.modules["bittorch._C"] = module


def _load_ops() -> None:
    """Imports the ops; an ImportError names one that the extension lacks."""
    try:
        importlib.import_module("bittorch.ops")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        raise ImportError(
            f"bittorch's extension is older than its Python files: {error}; {REBUILD} (or make build)"
        ) from None


def load() -> None:
    """Registers torch.ops.bittorch by importing the extension, and applies the kernel variables of the environment."""
    running = _running_torch()
    _check_files()
    _load_shim(find_shim(running))
    _load_ops()
    from bittorch import _C, _env

    _env.apply(_C)


def has_cuda_ext() -> bool:
    """Whether this build has CUDA kernels; whether a device is there, `torch.cuda.is_available` says."""
    from bittorch import _C

    return any(row["device"] == "cuda" for row in _C.kernels())
