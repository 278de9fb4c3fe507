"""Result files: a line of JSON for each (task, split, recipe, method, seed), added when the run is done."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from methods import same_as

import bittorch

RESULTS = Path(__file__).parent.parent / "results" / "accuracy"
KEY = ("task", "split", "recipe", "method", "seed")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(device: str) -> dict[str, Any]:
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bittorch": bittorch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a run is, but that methods of one configuration are one."""
    return tuple(same_as(record[name]) if name == "method" else record[name] for name in KEY)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file; none where there is no file.

    Raises:
        ValueError: a line that is no record.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            key_of(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}; delete the line, and its run is done again") from None
        records.append(record)
    return records


def append(path: Path, record: dict[str, Any]) -> None:
    """One write, so that runs in other processes may append to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, line) != len(line):
            raise OSError(f"{path}: the last line is cut off (is the disk full?); delete it")
    finally:
        os.close(file)


def command(options: list[str]) -> str:
    """The call of run.py, with folders of this machine by the name of their option."""
    words = ["python", "benchmark/accuracy/run.py"]
    for before, word in zip(["", *options], options, strict=False):
        words.append(before[2:].upper() if before in ("--data", "--results", "--teachers", "--keep") else word)
    return " ".join(words)
