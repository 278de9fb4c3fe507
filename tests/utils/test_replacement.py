"""What is at a place is the old thing or the new one, whole, whoever is killed and whoever else writes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bittorch.utils import replacement
from bittorch.utils.replacement import recover, replacing

KINDS = pytest.mark.parametrize("directory", [True, False], ids=["directory", "file"])
# Without renameat2, as on systems and file systems that lack it.
STEPS = pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])


@pytest.fixture(autouse=True)
def _steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "exchange" in request.fixturenames and not request.getfixturevalue("exchange"):
        monkeypatch.setattr(replacement, "_renameat2", lambda: None)


def put(path: Path, text: str, directory: bool) -> None:
    if directory:
        path.mkdir()
        path = path / "part"
    path.write_text(text)


def text_at(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


def write(place: Path, text: str, directory: bool, then: Callable[[], object] = lambda: None, **options: Any) -> None:
    """Puts a text there whole, and does something meanwhile."""
    with replacing(place, directory=directory, **options) as unfinished:
        put(unfinished, text, directory)
        then()


def never() -> None:
    pytest.fail("must be refused before the work")


@KINDS
@STEPS
def test_new_and_replaced(directory: bool, exchange: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    for text in ("one", "two"):
        with replacing(place, directory=directory, overwrite=text == "two") as unfinished:
            put(unfinished, text, directory)
            assert not place.exists() or text_at(place) == "one"
        assert text_at(place) == text
        assert list(tmp_path.iterdir()) == [place]


@KINDS
def test_what_is_there_stays_without_overwrite_and_on_failure(directory: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    put(place, "old", directory)
    with pytest.raises(FileExistsError, match="say overwrite"):
        write(place, "new", directory, never, overwrite=False)
    with pytest.raises(ZeroDivisionError):
        write(place, "new", directory, lambda: 1 / 0, overwrite=True)
    assert text_at(place) == "old"
    assert list(tmp_path.iterdir()) == [place]


@STEPS
def test_an_empty_directory_is_a_place(exchange: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with replacing(place, directory=True, overwrite=False) as unfinished:
        put(unfinished, "new", True)
    assert text_at(place) == "new"


@KINDS
@STEPS
def test_the_later_of_two_writers_stays(directory: bool, exchange: bool, tmp_path: Path) -> None:  # FIELD R10
    place = tmp_path / "place"
    for _ in range(2):  # first where nothing is, then where the first round's is
        with replacing(place, directory=directory, overwrite=True) as first:
            put(first, "first", directory)
            with replacing(place, directory=directory, overwrite=True) as second:
                put(second, "second", directory)
            assert text_at(place) == "second"
        assert text_at(place) == "first"
        assert list(tmp_path.iterdir()) == [place]


@KINDS
@STEPS
def test_a_place_taken_meanwhile_is_not_overwritten(directory: bool, exchange: bool, tmp_path: Path) -> None:
    # FIELD R10
    place, check = tmp_path / "place", replacement._allowed

    def other_appears() -> None:
        """Behind the last look, just before the rename."""
        patch.setattr(replacement, "_allowed", lambda *args: (check(*args), put(place, "second", directory)))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FileExistsError, match="place was made by another"):
        write(place, "first", directory, other_appears, overwrite=False)
    assert text_at(place) == "second"
    assert list(tmp_path.iterdir()) == [place]


@KINDS
def test_links_stay_links(directory: bool, tmp_path: Path) -> None:  # FIELD R10
    (tmp_path / "far").mkdir()
    place, real = tmp_path / "place", tmp_path / "far" / "real"
    place.symlink_to(real)
    for text in ("one", "two"):  # a link that leads nowhere yet, and one that does
        with replacing(place, directory=directory, overwrite=True) as unfinished:
            put(unfinished, text, directory)
        assert place.is_symlink()
        assert text_at(real) == text
        assert list((tmp_path / "far").iterdir()) == [real]


def test_the_check_comes_before_the_work_and_before_the_end(tmp_path: Path) -> None:
    place = tmp_path / "place"
    put(place, "old", True)

    def check(real: Path) -> None:
        if (real / "letter").exists():
            raise FileExistsError("a letter")

    with pytest.raises(FileExistsError, match="a letter"):
        write(place, "new", True, lambda: (place / "letter").write_text("dear"), overwrite=True, check=check)
    assert (place / "letter").read_text() == "dear"
    with pytest.raises(FileExistsError, match="a letter"):
        write(place, "new", True, never, overwrite=True, check=check)


def test_errors_name_what_the_caller_named(tmp_path: Path) -> None:  # FIELD N14
    place = tmp_path / "none" / "place"
    with pytest.raises(FileNotFoundError, match="none is not a directory") as error:
        write(place, "new", True, never, overwrite=True)
    assert error.value.filename == str(place)
    place = tmp_path / "place"
    with pytest.raises(FileNotFoundError) as other:
        write(place, "new", False, lambda: (next(tmp_path.glob("*.tmp")) / "none").read_text(), overwrite=True)
    assert (other.value.filename, other.value.errno) == (str(place), errno.ENOENT)


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not an ordinary file"):
        write(tmp_path / "pipe", "new", False, never, overwrite=True)


def test_everything_is_on_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # FIELD R10
    place, synced = tmp_path / "place", []
    put(place, "old", True)
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2], text_at(place)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    with replacing(place, directory=True, overwrite=True) as unfinished:
        put(unfinished, "new", True)
    assert synced == [("part", "old"), ("new", "old"), (tmp_path.name, "new")]


KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("replacement", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
place, directory, moment = pathlib.Path(sys.argv[2]), sys.argv[3] == "directory", sys.argv[4]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


if moment == "between the renames":
    module._renameat2 = lambda: None
    rename, calls = os.rename, []
    os.rename = lambda *args: (calls.append(1), rename(*args) if len(calls) == 1 else die())
if moment == "before it is in place":
    module._place_directory = module._place_file = die
if moment == "before the old one is gone":
    module.shutil.rmtree = die
with module.replacing(place, directory=directory, overwrite=True) as new:
    if directory:
        new.mkdir()
        (new / "part").write_text("n")
        if moment == "while writing":
            die()
        (new / "part").write_text("new")
    else:
        new.write_text("new") if moment != "while writing" else die()
"""


@pytest.mark.parametrize(
    ("directory", "moment", "left"),
    [
        (True, "while writing", "old"),
        (True, "before it is in place", "old"),
        (True, "between the renames", "old"),
        (True, "before the old one is gone", "new"),
        (False, "while writing", "old"),
        (False, "before it is in place", "old"),
        (False, "before the old one is gone", "new"),
    ],
)
def test_a_killed_writer_leaves_one_whole(directory: bool, moment: str, left: str, tmp_path: Path) -> None:
    # FIELD R10
    place = tmp_path / "place"
    put(place, "old", directory)
    kind = "directory" if directory else "file"
    arguments = [sys.executable, "-S", "-c", KILLED, replacement.__file__, str(place), kind, moment]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 + place.exists()  # what the killed one left lies beside it
    assert place.exists() == (moment != "between the renames")
    recover(place)
    assert text_at(place) == left
    with replacing(place, directory=directory, overwrite=True) as unfinished:
        assert list(tmp_path.iterdir()) != [place]
        assert len(list(tmp_path.glob("*.tmp"))) == 1  # its own; the killed one's is gone
        put(unfinished, "next", directory)
    assert text_at(place) == "next"
    assert list(tmp_path.iterdir()) == [place]


def test_a_writer_recovers_before_it_collects(tmp_path: Path) -> None:
    """What a killed writer had moved away is not thrown away with its leavings."""
    left = tmp_path / f"place.{'a' * 16}.tmp"
    left.mkdir()
    put(left / "old", "old", True)
    with pytest.raises(FileExistsError, match="say overwrite"):
        write(tmp_path / "place", "new", True, never, overwrite=False)
    assert text_at(tmp_path / "place") == "old"


def test_what_a_living_writer_makes_is_not_collected(tmp_path: Path) -> None:
    left, other = (tmp_path / f"place.{letter * 16}.tmp" for letter in "ab")
    for path in (left, other, tmp_path / "place.tmp", tmp_path / "places.0123456789abcdef.tmp"):
        path.mkdir()
    lock = os.open(left, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with replacing(tmp_path / "place", directory=False, overwrite=True) as unfinished:
        put(unfinished, "new", False)
    os.close(lock)
    assert left.exists()
    assert not other.exists()
    assert (tmp_path / "place.tmp").exists()
    assert (tmp_path / "places.0123456789abcdef.tmp").exists()
