"""Files and directories that appear whole: written beside their place, then put there in one step.

A writer works in a directory ``<name>.<16 hex digits>.tmp`` beside the target. It holds a lock on it as long as it
lives, so a later writer knows what a killed one left behind, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

NEW, OLD = "new", "old"
_NOREPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2
_AT_FDCWD = -100
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of writing alone, which names no file
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(
    target: Path, *, directory: bool, overwrite: bool, check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Gives a path to write to, whose file or directory becomes ``target`` at the end, synchronised to disk.

    A writer that is killed, or that fails, leaves at ``target`` what was there. Where ``target`` is a symbolic link,
    the link stays and what it leads to is replaced.

    Args:
        target: a directory, or a file.
        directory: which of the two the caller writes.
        overwrite: replace what is there; without it, something there is an error, except an empty directory.
        check: called with the real path of what is there, before the work and again before it is replaced; it raises
            where that must stay.

    Raises:
        FileNotFoundError: the directory that is to hold ``target`` does not exist.
        FileExistsError: ``target`` is there and ``overwrite`` is False, also where another process made it meanwhile.
        OSError: the system's reason; it names ``target``.
    """
    real = check_place(target, directory=directory, overwrite=overwrite, check=check)
    work, lock = None, -1
    try:
        _collect(real)
        work, lock = _workplace(real)
        yield work / NEW
        _synchronise(work / NEW)
        _allowed(real, target, directory, overwrite, check)
        (_place_directory if directory else _place_file)(work, real, target, overwrite)
        _synchronise(real.parent, inside=False)
    except OSError as error:
        ours = str(error.filename).startswith(f"{work}") if error.filename else error.errno in _FULL
        if error.errno is None or work is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None  # the name that the caller knows
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def check_place(target: Path, *, directory: bool, overwrite: bool, check: Callable[[Path], None] | None = None) -> Path:
    """Raises as `replacing` does before the work; returns where it would write."""
    real = Path(os.path.realpath(target))
    if not real.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{real.parent} is not a directory to write it in", str(target))
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{real.parent} is not writable", str(target))
    recover(real)
    _allowed(real, target, directory, overwrite, check)
    return real


def recover(target: Path) -> None:
    """Puts back what a writer had moved away when it was killed, where the system cannot exchange two directories."""
    real = Path(os.path.realpath(target))
    if os.path.lexists(real):
        return
    for left in _left_behind(real):
        if not (left / OLD).exists():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a writer that lives, and is between two renames
                if (left / OLD).exists() and not os.path.lexists(real):
                    os.rename(left / OLD, real)
            finally:
                os.close(lock)


def _allowed(real: Path, target: Path, directory: bool, overwrite: bool, check: Callable[[Path], None] | None) -> None:
    if not os.path.lexists(real) or (directory and real.is_dir() and not any(real.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{target} is there already; say overwrite to replace it")
    if not directory and not real.is_file():
        raise FileExistsError(f"{target} is not an ordinary file, and will not be replaced by one")
    if check is not None:
        check(real)


def _left_behind(real: Path) -> list[Path]:
    pattern = re.compile(re.escape(real.name) + r"\.[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError), os.scandir(real.parent) as entries:
        return [real.parent / entry.name for entry in entries if pattern.fullmatch(entry.name)]
    return []


def _collect(real: Path) -> None:
    """Removes what killed writers left."""
    for left in _left_behind(real):
        with contextlib.suppress(OSError):  # a lock that is held: its writer lives
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(lock)


def _workplace(real: Path) -> tuple[Path, int]:
    """A new directory beside ``real`` and the lock on it."""
    while True:
        work = real.with_name(f"{real.name}.{secrets.token_hex(8)}.tmp")
        work.mkdir()
        lock = os.open(work, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is collected there
            fcntl.flock(lock, fcntl.LOCK_EX)
        if work.exists():
            return work, lock
        os.close(lock)  # another process took it for abandoned before it was locked


def _place_file(work: Path, real: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(work / NEW, real)
        return
    try:
        if not _rename(work / NEW, real, _NOREPLACE):
            os.link(work / NEW, real)
    except FileExistsError:
        raise FileExistsError(f"{target} was made by another process meanwhile") from None


def _place_directory(work: Path, real: Path, target: Path, overwrite: bool) -> None:
    for attempt in range(100):
        if overwrite and real.is_dir() and any(real.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                if _rename(work / NEW, real, _EXCHANGE):
                    return
                os.rename(real, work / (OLD if not attempt else f"{OLD}{attempt}"))
        try:
            os.rename(work / NEW, real)  # replaces an empty directory, and no other
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not overwrite:
                raise FileExistsError(f"{target} was made by another process meanwhile") from None
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(target))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # no Linux, or an old C library
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2. Returns False where the system or the file system does not have it; raises OSError."""
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(target))


def _synchronise(path: Path, inside: bool = True) -> None:
    """Waits until the disk has a file, or a directory and what is in it."""
    if inside and path.is_dir():
        for part in path.iterdir():
            _synchronise(part)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not synchronise directories
            raise
    finally:
        os.close(handle)
