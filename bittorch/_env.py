"""The environment: BITTORCH_* variables and the place of caches; nothing else reads it, and C never does.

BITTORCH_PACKED_KERNEL   auto (default), baseline, tiled or a variant such as avx2: the kernel of the packed products,
                         for every call that does not name one itself. An op that lacks the variant stays automatic.
BITTORCH_INFER_KERNEL    packed (default) or baseline: the same switch for the inference layers alone.

XDG_CACHE_HOME           where caches are, ~/.cache by default; see `cache_directory`.
CUDA_HOME, CC            the toolkit and the compiler that `bittorch doctor` looks for.

The first two are read once, at import. An empty variable counts as unset. Precedence: the variant argument of a call,
then _C.force_kernel(), then BITTORCH_INFER_KERNEL, then BITTORCH_PACKED_KERNEL, then automatic.
"""

import os
import stat
from pathlib import Path
from types import ModuleType

PACKED_KERNEL = "BITTORCH_PACKED_KERNEL"
INFER_KERNEL = "BITTORCH_INFER_KERNEL"
PRODUCTS = ("ternary_linear_packed", "ternary_linear_w2a8", "ternary_conv2d_packed")
INFER_KERNELS = {"packed": "auto", "baseline": "?baseline"}  # a wish: what force_kernel says goes first


def _one_of(variable: str, value: str, valid: list[str]) -> str:
    if value not in valid:
        raise ValueError(f"{variable} must be one of {', '.join(valid)}, got {value!r}")
    return value


def _infer_variant() -> str:
    value = _one_of(INFER_KERNEL, os.environ.get(INFER_KERNEL) or "packed", list(INFER_KERNELS))
    return INFER_KERNELS[value]


# The variant argument that inference modules pass to their op.
INFER_VARIANT = _infer_variant()


def packed_kernel(extension: ModuleType) -> str:
    """The value of BITTORCH_PACKED_KERNEL, checked against the kernels that this machine can run."""
    rows = [row for row in extension.kernels() if row["op"] in PRODUCTS and row["usable"]]
    valid = ["auto", "baseline", "tiled", *dict.fromkeys(row["variant"] for row in rows)]
    return _one_of(PACKED_KERNEL, os.environ.get(PACKED_KERNEL) or "auto", valid)


def apply(extension: ModuleType) -> None:
    """Makes BITTORCH_PACKED_KERNEL the default of the products that have such a kernel."""
    name = packed_kernel(extension)
    for op in PRODUCTS:
        names = {row["variant"] for row in extension.kernels() if row["op"] == op and row["usable"]}
        if name in names or name in ("auto", "baseline", "tiled"):
            extension.set_default_kernel(op, name)


def build_tools() -> tuple[str, str]:
    """CUDA_HOME and CC, as setup.py reads them."""
    return os.environ.get("CUDA_HOME") or "", os.environ.get("CC") or ""


def home_cache() -> Path | None:
    """``$XDG_CACHE_HOME/bittorch``, or ``~/.cache/bittorch``; None for a user without a home, as in some containers.

    Source: XDG Base Directory Specification 0.8, which has a relative path ignored.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "bittorch"
    try:
        return Path.home() / ".cache" / "bittorch"
    except RuntimeError:  # no HOME, and the system knows no user of this number
        return None


def cache_directory() -> Path:
    """Where bittorch keeps what it can make again: `home_cache`, else a directory among the temporary files.

    Raises:
        OSError: the temporary directory cannot be made, or is another user's.
    """
    found = home_cache()
    return _temporary_cache() if found is None else found


def _temporary_cache() -> Path:
    import tempfile

    path = Path(tempfile.gettempdir()) / f"bittorch-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()  # the name can be guessed: another user may have put a link or a directory there
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(
            f"{path} is not a directory that user {os.getuid()} alone can write to; set XDG_CACHE_HOME"
        )
    return path
