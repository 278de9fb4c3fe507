"""Loads bittorch._C, after checking that the running PyTorch is the one it was built against."""

import importlib
from pathlib import Path


def minor_version(version: str) -> tuple[str, ...]:
    """The part of a torch version that its C++ ABI goes with: ("2", "13") for "2.13.0+cpu"."""
    return tuple(version.split("+")[0].split(".")[:2])


def check_torch(built: str, running: str) -> None:
    """Raises ImportError where the two versions of torch differ in their minor."""
    if minor_version(built) != minor_version(running):
        raise ImportError(
            f"bittorch was built against torch {built} but torch {running} is running; "
            "rebuild it in its checkout: pip install --no-build-isolation --no-deps --force-reinstall ."
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


def _load_extension() -> None:
    """Imports _C; an ImportError says in one line why it is not there or does not load."""
    folder = Path(__file__).parent
    try:
        importlib.import_module("bittorch._C")
    except ModuleNotFoundError:
        if not folder.is_dir():
            raise ImportError(
                f"bittorch cannot be imported from the archive {folder.parent}: its extension is a shared library, "
                "which only a file system can hold; unpack the archive or install the wheel"
            ) from None
        raise ImportError(
            f"bittorch's extension is not in {folder}, or is one for another Python; "
            "run: pip install --no-build-isolation -e . (or make build)"
        ) from None
    except ImportError as error:
        raise ImportError(
            f"bittorch's extension does not load: {error}; rebuild it in its checkout: "
            "pip install --no-build-isolation --no-deps --force-reinstall ."
        ) from error


def _load_ops() -> None:
    """Imports the ops; an ImportError names one that the extension lacks."""
    try:
        importlib.import_module("bittorch.ops")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        raise ImportError(
            f"bittorch's extension is older than its Python files: {error}; rebuild it in its checkout: "
            "pip install --no-build-isolation --no-deps --force-reinstall . (or make build)"
        ) from None


def load() -> None:
    """Registers torch.ops.bittorch by importing the extension, and applies the kernel variables of the environment."""
    try:
        from bittorch import _build_info
    except ImportError:
        raise ImportError(
            "bittorch's extension is not built; run: pip install --no-build-isolation -e . (or make build)"
        ) from None
    check_torch(_build_info.TORCH_VERSION, _running_torch())
    _load_extension()
    _load_ops()
    from bittorch import _C, _env

    _env.apply(_C)


def has_cuda_ext() -> bool:
    """Whether this build has CUDA kernels; whether a device is there, `torch.cuda.is_available` says."""
    from bittorch import _C

    return any(row["device"] == "cuda" for row in _C.kernels())
