"""Loads bittorch._C, after checking that the running PyTorch is the one it was built against."""

import torch


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


def load() -> None:
    """Registers torch.ops.bittorch by importing the extension, and applies the kernel variables of the environment."""
    try:
        from bittorch import _build_info
    except ImportError:
        raise ImportError(
            "bittorch's extension is not built; run: pip install --no-build-isolation -e . (or make build)"
        ) from None
    check_torch(_build_info.TORCH_VERSION, torch.__version__)
    from bittorch import _C, _env

    _env.apply(_C)


def has_cuda_ext() -> bool:
    """Whether this build has CUDA kernels; whether a device is there, `torch.cuda.is_available` says."""
    from bittorch import _C

    return any(row["device"] == "cuda" for row in _C.kernels())
